use super::*;
use crate::image::artifact::digest_of;

fn packages(folder: &Path, change: impl FnOnce(&mut CodeSettings)) -> CodePackages {
    let mut settings = Settings::default();
    settings.code.folder = folder.to_owned();
    change(&mut settings.code);
    CodePackages::open(&settings).expect("opens")
}

fn acme() -> TenantId {
    "acme".parse().expect("a name")
}

fn upload(packages: &CodePackages, tenant: &TenantId, bytes: &[u8]) -> Result<Digest, CodeError> {
    let package = digest_of(bytes);
    let mut arriving = packages.receive(tenant, package)?;
    bytes.chunks(3).try_for_each(|chunk| arriving.write(chunk))?;
    arriving.finish().map(|_| package)
}

fn left(folder: &Path) -> usize {
    fs::read_dir(folder.join("acme")).map_or(0, Iterator::count)
}

#[test]
fn a_package_is_there_when_all_of_it_has_arrived_and_only_for_its_tenant() {
    let folder = tempfile::tempdir().expect("folder");
    let packages = packages(folder.path(), |_| {});
    let package = upload(&packages, &acme(), b"some bytes").expect("kept");
    assert_eq!(fs::read(packages.path(&acme(), package)).expect("is there"), b"some bytes");
    packages.keep(&acme(), package).expect("is there");
    let other = "other".parse().expect("a name");
    assert!(matches!(packages.keep(&other, package), Err(CodeError::Missing(_))));
    assert_eq!(upload(&packages, &acme(), b"some bytes").expect("again"), package);
    let mut wrong = packages.receive(&acme(), package).expect("begins");
    wrong.write(b"other bytes").expect("taken");
    assert!(matches!(wrong.finish(), Err(CodeError::WrongDigest { .. })));
    assert_eq!(left(folder.path()), 1, "nothing is left of what was refused");
}

#[test]
fn packages_are_bounded_in_size_number_and_altogether() {
    let folder = tempfile::tempdir().expect("folder");
    let packages = packages(folder.path(), |code| {
        (code.package_bytes_max, code.packages_per_tenant_max, code.bytes_max) = (10, 2, 15);
        code.uploads_max = 1;
    });
    assert!(matches!(upload(&packages, &acme(), &[1; 11]), Err(CodeError::TooLarge(10))));
    upload(&packages, &acme(), &[1; 10]).expect("fits");
    assert!(matches!(upload(&packages, &acme(), &[2; 6]), Err(CodeError::Full(15))));
    upload(&packages, &acme(), &[2; 5]).expect("fits");
    assert!(matches!(upload(&packages, &acme(), &[3; 1]), Err(CodeError::TooMany(2))));
    upload(&packages, &acme(), &[2; 5]).expect("is there already");
    let _arriving = packages.receive(&acme(), digest_of(b"")).expect("begins");
    assert!(matches!(packages.receive(&acme(), digest_of(b"")), Err(CodeError::Busy)));
}

#[test]
fn what_no_function_names_goes_when_nobody_has_used_it_for_a_while() {
    let folder = tempfile::tempdir().expect("folder");
    let packages = packages(folder.path(), |_| {});
    let named = upload(&packages, &acme(), b"named").expect("kept");
    let unused = upload(&packages, &acme(), b"unused").expect("kept");
    let names = BTreeSet::from([(acme(), named)]);
    assert_eq!(packages.remove_unused(&names, Duration::from_secs(3600)).expect("looks"), 0);
    assert_eq!(packages.remove_unused(&names, Duration::ZERO).expect("looks"), 1);
    packages.keep(&acme(), named).expect("is there");
    assert!(matches!(packages.keep(&acme(), unused), Err(CodeError::Missing(_))));
}

#[test]
fn what_was_arriving_is_gone_with_the_manager_that_took_it() {
    let folder = tempfile::tempdir().expect("folder");
    let before = packages(folder.path(), |_| {});
    let package = upload(&before, &acme(), b"whole").expect("kept");
    let mut arriving = before.receive(&acme(), digest_of(b"half")).expect("begins");
    arriving.write(b"ha").expect("taken");
    assert_eq!(left(folder.path()), 2);
    packages(folder.path(), |_| {}).keep(&acme(), package).expect("is there");
    assert_eq!(left(folder.path()), 1);
}
