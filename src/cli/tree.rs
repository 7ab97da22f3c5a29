//! `faasnet tree NAME`: the trees of a function, drawn: that of its image, stripe by stripe, and that of its code.

use super::{
    Context, Failure,
    output::{Output, bar, branches, parse, printable},
    screen::Screen,
    stream::{Followed, Pauses, until_interrupted},
};
use clap::Args;
use faasnet_actors::{
    id::{FunctionName, VmId},
    model::{MemberView, PlaceView, TreeView},
};
use serde::Deserialize;
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    iter,
    process::ExitCode,
    time::Duration,
};
use tokio::time::Instant;

#[derive(Debug, Args)]
pub struct Tree {
    name: FunctionName,
    /// Draw it again whenever it changes, until Ctrl-C
    #[arg(long)]
    watch: bool,
}

/// Kinds of events behind which the tree looks different.
const KINDS: &str = "member,member_left,transfer,repair,tree_dissolved,function_deleted";
/// Shortest time between two looks. Starts of hundreds of VMs tell of thousands of changes a second, and nobody
/// sees more than some of them.
const LOOK_PAUSE: Duration = Duration::from_millis(250);

impl Tree {
    pub(super) async fn run(self, context: &mut Context<'_>) -> Result<ExitCode, Failure> {
        if self.watch {
            return until_interrupted(self.watch(context)).await;
        }
        let body = context.client.get(&self.path()).await?;
        context.output.answer(&body, |tree: TreeView| draw(&tree))?;
        Ok(ExitCode::SUCCESS)
    }

    fn path(&self) -> String {
        format!("/v1/functions/{}/tree", self.name)
    }

    /// Looks at the tree behind each event of it: the view is the truth, events only say when to look.
    async fn watch(self, context: &mut Context<'_>) -> Result<Infallible, Failure> {
        let filter = [("function", Some(self.name.to_string())), ("kind", Some(KINDS.to_owned()))];
        let mut events = Followed::open(&context.client, filter, None).await?;
        let mut shown = Shown::new();
        let mut pauses = Pauses::new();
        let (mut is_due, mut next_look) = (false, Instant::now());
        loop {
            tokio::select! {
                items = events.next() => match items? {
                    // Each stream begins with where it begins: what changes behind the first look is told.
                    Some(_) => is_due = true,
                    None => {
                        shown.leave();
                        events.come_back().await?;
                    }
                },
                () = tokio::time::sleep_until(next_look), if is_due => {
                    match context.client.get(&self.path()).await {
                        Ok(body) => {
                            shown.tree(&mut context.output, &body)?;
                            (is_due, pauses, next_look) = (false, Pauses::new(), Instant::now() + LOOK_PAUSE);
                        }
                        Err(Failure::Refused(problem)) if problem.status() == 404 => {
                            shown.problem(&format!("{}; watching for it", problem.detail));
                            (is_due, pauses, next_look) = (false, Pauses::new(), Instant::now() + LOOK_PAUSE);
                        }
                        Err(failure) if failure.may_pass() => {
                            shown.problem(&format!("{failure}; waiting for the manager"));
                            next_look = Instant::now() + pauses.next();
                        }
                        Err(failure) => return Err(failure),
                    }
                }
            }
        }
    }
}

/// What the watcher has before their eyes.
struct Shown {
    screen: Screen,
    tree: Option<Value>,
    problem: Option<String>,
}

impl Shown {
    fn new() -> Self {
        Self { screen: Screen::new(), tree: None, problem: None }
    }

    /// Shows a tree that differs from what is seen.
    fn tree(&mut self, output: &mut Output<'_>, body: &[u8]) -> Result<(), Failure> {
        let json: Value = parse(body)?;
        self.problem = None;
        if self.tree.as_ref() == Some(&json) {
            return Ok(());
        }
        let view = TreeView::deserialize(&json).map_err(|error| Failure::Answer(error.to_string()))?;
        output.frame(&mut self.screen, &json.to_string(), || draw(&view))?;
        self.tree = Some(json);
        Ok(())
    }

    /// Says beside the results why there is no tree to be seen; the same one only once.
    fn problem(&mut self, text: &str) {
        if self.problem.as_deref() != Some(text) {
            self.leave();
            eprintln!("{}", printable(text));
            self.problem = Some(text.to_owned());
        }
    }

    /// Something is written below the tree: the next one is shown again, even when it is the same.
    fn leave(&mut self) {
        self.screen.leave();
        self.tree = None;
    }
}

/// Width of the bar that shows how many blocks a VM has.
const BAR_WIDTH: usize = 20;

/// The tree, and behind it that of the code.
fn draw(tree: &TreeView) -> String {
    let mut text = String::new();
    for (title, tree) in [("", Some(tree)), ("\ncode  ", tree.code.as_deref())] {
        if let Some(tree) = tree {
            text += title;
            draw_one(tree, &mut text);
        }
    }
    text
}

fn draw_one(tree: &TreeView, text: &mut String) {
    let (epoch, stripes) = (tree.epoch, 1 + tree.further_stripes.len());
    let image = format!("{}  epoch {}.{}", tree.image, epoch.term, epoch.counter);
    *text += &format!("{image}  height {}  VMs {}", tree.height, tree.members.len());
    let first = tree.members.iter().map(|member| {
        let MemberView { vm, place, parent, children, .. } = member.clone();
        PlaceView { vm, place, parent, children }
    });
    if stripes == 1 {
        *text += "\n";
        draw_stripe(&first.collect::<Vec<_>>(), tree, text);
        return;
    }
    *text += &format!("  stripes {stripes}\n");
    for (number, places) in iter::once(&first.collect()).chain(&tree.further_stripes).enumerate() {
        *text += &format!("stripe {} of {stripes}\n", number + 1);
        draw_stripe(places, tree, text);
    }
}

/// One line for each member, children below their parent. A member is drawn once, whatever a
/// confused answer says.
fn draw_stripe(places: &[PlaceView], tree: &TreeView, text: &mut String) {
    let members: BTreeMap<&VmId, &MemberView> =
        tree.members.iter().map(|member| (&member.vm, member)).collect();
    let by_name: BTreeMap<&VmId, &PlaceView> = places.iter().map(|place| (&place.vm, place)).collect();
    let roots: Vec<_> = places.iter().filter(|place| place.parent.is_none()).collect();
    let mut drawn: BTreeSet<&VmId> = roots.iter().map(|root| &root.vm).collect();
    let lines = branches(roots, |place| {
        let children = place.children.iter().filter_map(|child| by_name.get(child).copied());
        children.filter(|child| drawn.insert(&child.vm)).collect()
    });
    let width = |(branch, place): &(String, &PlaceView)| branch.chars().count() + place.vm.as_str().len();
    let widest = lines.iter().map(width).max().unwrap_or(0);
    for line in &lines {
        let (branch, place) = line;
        let Some(member) = members.get(&place.vm) else { continue };
        let mark = if member.ready { "●" } else { "○" };
        let (present, total) = (member.blocks_present, member.blocks_total);
        let bar = bar(present.into(), total.into(), BAR_WIDTH);
        let gap = " ".repeat(widest - width(line));
        *text += &format!("{branch}{}{gap}  {mark} {bar} {present}/{total}\n", printable(place.vm.as_str()));
    }
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
        let epoch = Epoch::default();
        let tree = TreeView { image, epoch, height: 2, members, further_stripes: Vec::new(), code: None };
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
