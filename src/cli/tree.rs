//! `faasnet tree NAME`: the function tree, drawn.

use super::{
    Context, Failure,
    output::{bar, branches, printable},
};
use clap::Args;
use faasnet_actors::{
    id::{FunctionName, VmId},
    model::{MemberView, TreeView},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    process::ExitCode,
};

#[derive(Debug, Args)]
pub struct Tree {
    name: FunctionName,
}

impl Tree {
    pub(super) async fn run(self, context: &mut Context<'_>) -> Result<ExitCode, Failure> {
        let body = context.client.get(&format!("/v1/functions/{}/tree", self.name)).await?;
        context.output.answer(&body, |tree: TreeView| draw(&tree))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Width of the bar that shows how many blocks a VM has.
const BAR_WIDTH: usize = 20;

/// One line for each member, children below their parent. A member is drawn once, whatever a
/// confused answer says.
fn draw(tree: &TreeView) -> String {
    let members: BTreeMap<&VmId, &MemberView> =
        tree.members.iter().map(|member| (&member.vm, member)).collect();
    let roots: Vec<_> = tree.members.iter().filter(|member| member.parent.is_none()).collect();
    let mut drawn: BTreeSet<&VmId> = roots.iter().map(|root| &root.vm).collect();
    let lines = branches(roots, |member| {
        let children = member.children.iter().filter_map(|child| members.get(child).copied());
        children.filter(|child| drawn.insert(&child.vm)).collect()
    });
    let width = |(branch, member): &(String, &MemberView)| branch.chars().count() + member.vm.as_str().len();
    let widest = lines.iter().map(width).max().unwrap_or(0);
    let mut text = format!(
        "{}  epoch {}.{}  height {}  VMs {}\n",
        tree.image,
        tree.epoch.term,
        tree.epoch.counter,
        tree.height,
        tree.members.len()
    );
    for line in &lines {
        let (branch, member) = line;
        let mark = if member.ready { "●" } else { "○" };
        let (present, total) = (member.blocks_present, member.blocks_total);
        let bar = bar(present.into(), total.into(), BAR_WIDTH);
        let gap = " ".repeat(widest - width(line));
        text +=
            &format!("{}{}{gap}  {mark} {bar} {present}/{total}\n", branch, printable(member.vm.as_str()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use faasnet_actors::id::{Digest, Epoch};

    fn vm(number: u32) -> VmId {
        format!("vm-{number}").parse().expect("valid")
    }

    fn member(place: u32, parent: Option<u32>, children: &[u32]) -> MemberView {
        MemberView {
            vm: vm(place),
            place,
            parent: parent.map(vm),
            children: children.iter().copied().map(vm).collect(),
            ready: place == 0,
            blocks_present: 5,
            blocks_total: 10,
        }
    }

    fn names(members: Vec<MemberView>) -> Vec<String> {
        let image = Digest::from_bytes([0; 32]);
        let tree = TreeView { image, epoch: Epoch::default(), height: 2, members };
        let cut = |line: &str| line.split("  ").next().unwrap_or_default().trim_end().to_owned();
        draw(&tree).lines().skip(1).map(cut).collect()
    }

    #[test]
    fn children_hang_below_their_parent_in_their_order() {
        let members = vec![
            member(0, None, &[1, 2]),
            member(1, Some(0), &[3, 4]),
            member(2, Some(0), &[]),
            member(3, Some(1), &[]),
            member(4, Some(1), &[]),
        ];
        let lines = names(members);
        assert_eq!(lines, ["vm-0", "├── vm-1", "│", "│", "└── vm-2"], "{lines:?}");
    }

    #[test]
    fn a_circle_in_the_answer_ends() {
        assert_eq!(names(vec![member(0, None, &[1]), member(1, Some(0), &[0])]).len(), 2);
    }
}
