//! Packages of code: the zips that tenants upload, kept until no function names them.
//!
//! ```text
//! FOLDER/TENANT/HEX.zip        a package, by the SHA-256 of its bytes
//! FOLDER/TENANT/.HEX.RANDOM    one that arrives
//! ```
//!
//! A package appears under its name by renaming, when all of it is on the disk and has its digest; a function
//! may name it from then on. It is removed when no function names it and nobody has uploaded or named it for
//! `code.unused_ttl_ms`: a deploy uploads first and names it then, and both count as use, so no package
//! vanishes between the two.

mod sweep;
#[cfg(test)]
mod tests;

pub use sweep::sweep;

use crate::{
    image::zip::ZipLimits,
    settings::{CodeSettings, Settings},
};
use faasnet_actors::id::{Digest, TenantId};
use sha2::{Digest as _, Sha256};
use std::{
    collections::BTreeSet,
    fs::{self, DirBuilder, File, FileTimes},
    io::{self, Write},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};
use tempfile::NamedTempFile;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What files that arrive begin with.
const ARRIVING: &str = ".arriving-";

/// Why a package is not kept, or not there.
#[derive(Debug, thiserror::Error)]
pub enum CodeError {
    #[error("a package may have {0} bytes (code.package_bytes_max)")]
    TooLarge(u64),
    #[error("what arrived has the digest {got}, not {wanted}")]
    WrongDigest { wanted: Digest, got: Digest },
    #[error(
        "this tenant has {0} packages, as many as it may (code.packages_per_tenant_max); those that no function \
         names go after a while"
    )]
    TooMany(usize),
    #[error("there is no room for packages now: all of them may have {0} bytes (code.bytes_max)")]
    Full(u64),
    #[error("as many packages arrive as may at once")]
    Busy,
    #[error("there is no package {0}; upload it first, as `faasnet function deploy --zip` does")]
    Missing(Digest),
    #[error("the folder of packages cannot be used: {0}")]
    Io(#[from] io::Error),
}

/// The packages of all tenants. Cheap to clone.
#[derive(Clone)]
pub struct CodePackages {
    inner: Arc<Inner>,
}

struct Inner {
    folder: PathBuf,
    settings: CodeSettings,
    arriving: Arc<Semaphore>,
    /// Held while a package gets its name, is used or removed, never while bytes are read or written.
    names: Mutex<()>,
}

impl CodePackages {
    /// As the settings say; without `code.folder`, in the manager's data folder. What was arriving when a
    /// manager before this one ended is removed.
    pub fn open(settings: &Settings) -> Result<Self, CodeError> {
        let folder = &settings.code.folder;
        let is_given = !folder.as_os_str().is_empty();
        let folder = if is_given { folder.clone() } else { settings.manager.data.join("code") };
        DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        let arriving = Arc::new(Semaphore::new(settings.code.uploads_max.max(1)));
        let inner = Inner { folder, settings: settings.code.clone(), arriving, names: Mutex::new(()) };
        let packages = Self { inner: Arc::new(inner) };
        for file in packages.files()?.into_iter().filter(|file| file.package.is_none()) {
            fs::remove_file(file.path)?;
        }
        Ok(packages)
    }

    /// Longest package, in bytes.
    pub fn package_bytes_max(&self) -> u64 {
        self.inner.settings.package_bytes_max
    }

    /// Begins to take a package. Blocking.
    pub fn receive(&self, tenant: &TenantId, package: Digest) -> Result<Arriving, CodeError> {
        let permit = Arc::clone(&self.inner.arriving).try_acquire_owned().map_err(|_| CodeError::Busy)?;
        let folder = self.inner.folder.join(tenant.as_str());
        DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        let file = tempfile::Builder::new().prefix(ARRIVING).tempfile_in(&folder)?;
        Ok(Arriving {
            packages: self.clone(),
            tenant: tenant.clone(),
            package,
            file,
            bytes: 0,
            sha256: Sha256::new(),
            _permit: permit,
        })
    }

    /// Keeps a package for at least `code.unused_ttl_ms` from now on. Blocking.
    pub fn keep(&self, tenant: &TenantId, package: Digest) -> Result<(), CodeError> {
        let _names = self.names();
        match File::options().write(true).open(self.path(tenant, package)) {
            Ok(file) => Ok(file.set_times(FileTimes::new().set_modified(SystemTime::now()))?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(CodeError::Missing(package)),
            Err(error) => Err(error.into()),
        }
    }

    /// Where a package lies.
    pub fn path(&self, tenant: &TenantId, package: Digest) -> PathBuf {
        self.inner.folder.join(tenant.as_str()).join(format!("{}.zip", package.hex()))
    }

    /// Removes packages that are not among those named and that nobody has used for `unused`. Those named
    /// must have been asked for by then: whoever names another one has used it since. Blocking.
    pub fn remove_unused(
        &self,
        named: &BTreeSet<(TenantId, Digest)>,
        unused: Duration,
    ) -> Result<usize, CodeError> {
        let mut removed = 0;
        for file in self.files()? {
            let Some(package) = file.package.filter(|package| !named.contains(package)) else { continue };
            let _names = self.names();
            let Ok(found) = fs::metadata(&file.path) else { continue };
            let age = SystemTime::now().duration_since(found.modified()?).unwrap_or_default();
            if age >= unused {
                fs::remove_file(&file.path)?;
                removed += 1;
                let (tenant, digest) = package;
                tracing::info!(%tenant, package = %digest, "a package that no function names is removed");
            }
        }
        Ok(removed)
    }

    fn names(&self) -> std::sync::MutexGuard<'_, ()> {
        self.inner.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All files of all tenants; files that are no packages have none.
    fn files(&self) -> io::Result<Vec<Found>> {
        let mut found = Vec::new();
        for tenant in fs::read_dir(&self.inner.folder)? {
            let tenant = tenant?;
            let Some(name) = tenant.file_name().to_str().and_then(|name| name.parse::<TenantId>().ok())
            else {
                continue;
            };
            for file in fs::read_dir(tenant.path())? {
                let file = file?;
                let hex =
                    file.file_name().to_str().and_then(|name| name.strip_suffix(".zip").map(str::to_owned));
                let digest = hex.and_then(|hex| format!("sha256:{hex}").parse().ok());
                let package = digest.map(|digest| (name.clone(), digest));
                // Whatever else somebody has put here is none of ours.
                if package.is_some() || file.file_name().to_string_lossy().starts_with(ARRIVING) {
                    found.push(Found { path: file.path(), bytes: file.metadata()?.len(), package });
                }
            }
        }
        Ok(found)
    }

    /// Whether a package of so many bytes may come to those that are there.
    fn check_room(&self, tenant: &TenantId, bytes: u64) -> Result<(), CodeError> {
        let settings = &self.inner.settings;
        let files = self.files()?;
        let own = files.iter().filter(|file| file.package.as_ref().is_some_and(|(owner, _)| owner == tenant));
        if own.count() >= settings.packages_per_tenant_max {
            return Err(CodeError::TooMany(settings.packages_per_tenant_max));
        }
        let kept = files.iter().filter(|file| file.package.is_some()).map(|file| file.bytes);
        if kept.fold(bytes, u64::saturating_add) > settings.bytes_max {
            return Err(CodeError::Full(settings.bytes_max));
        }
        Ok(())
    }
}

struct Found {
    path: PathBuf,
    bytes: u64,
    package: Option<(TenantId, Digest)>,
}

/// A package on its way. Dropped, nothing of it is left.
pub struct Arriving {
    packages: CodePackages,
    tenant: TenantId,
    package: Digest,
    file: NamedTempFile,
    bytes: u64,
    sha256: Sha256,
    _permit: OwnedSemaphorePermit,
}

impl Arriving {
    /// Takes the next bytes. Blocking.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), CodeError> {
        let limit = self.packages.inner.settings.package_bytes_max;
        self.bytes += bytes.len() as u64;
        if self.bytes > limit {
            return Err(CodeError::TooLarge(limit));
        }
        self.sha256.update(bytes);
        Ok(self.file.write_all(bytes)?)
    }

    /// Keeps it if it is what it was announced as; done when it would survive a crash. Again for one that is
    /// there already. Blocking.
    pub fn finish(self) -> Result<u64, CodeError> {
        let got = Digest::from_bytes(self.sha256.finalize().into());
        if got != self.package {
            return Err(CodeError::WrongDigest { wanted: self.package, got });
        }
        self.file.as_file().sync_all()?;
        let path = self.packages.path(&self.tenant, self.package);
        {
            let _names = self.packages.names();
            if !path.exists() {
                self.packages.check_room(&self.tenant, self.bytes)?;
            }
            self.file.persist(&path).map_err(|error| error.error)?;
        }
        let folder = path.parent().unwrap_or(Path::new("."));
        File::open(folder)?.sync_all()?;
        File::open(&self.packages.inner.folder)?.sync_all()?;
        Ok(self.bytes)
    }
}

impl CodeSettings {
    /// What the zip of a package may be.
    pub fn zip_limits(&self) -> ZipLimits {
        let Self { entries_max, plain_bytes_max, ratio_max, .. } = *self;
        ZipLimits { entries_max, plain_bytes_max, ratio_max }
    }
}
