//! `faasnet start NAME --count N`, `faasnet start show ID`, `faasnet start list NAME`.

use super::{
    Context, Failure,
    client::Client,
    output::{duration, moment, pairs, parse, progress, size, table},
};
use clap::{Args, Subcommand};
use faasnet_actors::{
    explain::{Explanation, Phase},
    id::{FunctionName, StartId},
    model::{StartState, StartView, Timeline},
};
use futures::{StreamExt, TryStreamExt, stream};
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use std::{process::ExitCode, time::Duration};
use tokio::time::Instant;

#[derive(Debug, Args)]
#[command(subcommand_negates_reqs = true, subcommand_precedence_over_arg = true)]
pub struct Start {
    #[command(subcommand)]
    look: Option<Look>,
    #[arg(required = true)]
    name: Option<FunctionName>,
    /// How many instances are added
    #[arg(long, value_name = "N", default_value_t = 1)]
    count: u32,
    /// Wait until each of them is ready or has failed
    #[arg(long)]
    wait: bool,
    /// Longest wait, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    timeout: u64,
}

#[derive(Debug, Subcommand)]
enum Look {
    /// Show where the time of a start went
    Show {
        #[arg(value_name = "START_ID")]
        id: StartId,
    },
    /// List the starts of a function, the newest first
    List {
        name: FunctionName,
        /// How many at most
        #[arg(long, value_name = "N", default_value_t = 50)]
        limit: usize,
    },
}

#[derive(Deserialize)]
struct Accepted {
    starts: Vec<StartId>,
}

#[derive(Deserialize)]
struct Starts {
    starts: Vec<StartView>,
}

impl Start {
    pub(super) async fn run(self, context: &mut Context<'_>) -> Result<ExitCode, Failure> {
        match (self.look, self.name) {
            (Some(Look::Show { id }), _) => {
                let body = context.client.get(&format!("/v1/starts/{id}")).await?;
                let why = context.client.get(&format!("/v1/starts/{id}/explanation")).await?;
                let why = parse::<Explanation>(&why)?;
                context.output.answer(&body, |start: StartView| show(&start, &why))?;
            }
            (Some(Look::List { name, limit }), _) => {
                let body = context.client.get(&format!("/v1/functions/{name}/starts?limit={limit}")).await?;
                context.output.answer(&body, |answer: Starts| list(answer.starts))?;
            }
            (None, Some(name)) => {
                let timeout = self.wait.then(|| Duration::from_secs(self.timeout));
                start(context, &name, self.count, timeout).await?;
            }
            (None, None) => return Err(Failure::Usage("name a function".into())),
        }
        Ok(ExitCode::SUCCESS)
    }
}

async fn start(
    context: &mut Context<'_>,
    name: &FunctionName,
    count: u32,
    timeout: Option<Duration>,
) -> Result<(), Failure> {
    let path = format!("/v1/functions/{name}/starts");
    let accepted = context.client.send(Method::POST, &path, &json!({"count": count})).await?;
    let Some(timeout) = timeout else {
        let lines = |answer: Accepted| answer.starts.iter().map(|id| format!("{id}\n")).collect();
        return context.output.answer(&accepted, lines);
    };
    let ids = parse::<Accepted>(&accepted)?.starts;
    let views = wait(&context.client, ids, timeout).await?;
    // The API's own JSON of each start, in the form in which it lists them.
    let body = serde_json::to_vec(&json!({"starts": views})).expect("it came as JSON");
    context.output.answer(&body, |answer: Starts| list(answer.starts))?;
    let starts = parse::<Starts>(&body)?.starts;
    let ended: Vec<_> = starts.iter().filter(|start| start.state == StartState::Ended).collect();
    let Some(first) = ended.first() else { return Ok(()) };
    let reason = first.reason.as_ref().map_or_else(|| "no reason was given".into(), ToString::to_string);
    Err(Failure::Starts { ended: ended.len(), count: starts.len(), reason })
}

/// Pause between two rounds of looks.
const POLL: Duration = Duration::from_millis(50);
/// Looks at once.
const LOOKS: usize = 16;

/// Looks at the starts until each is ready or ended; gives them in the order of their acceptance.
async fn wait(client: &Client, ids: Vec<StartId>, timeout: Duration) -> Result<Vec<Value>, Failure> {
    let began = Instant::now();
    let mut views = vec![Value::Null; ids.len()];
    let mut open: Vec<_> = ids.into_iter().enumerate().collect();
    let progress = progress(views.len() as u64, "{pos} of {len} ready or ended {bar:30} {elapsed}");
    loop {
        let look = async |(place, id): (usize, StartId)| {
            let body = client.get(&format!("/v1/starts/{id}")).await?;
            Ok::<_, Failure>((place, id, body))
        };
        let answers: Vec<_> = stream::iter(open).map(look).buffer_unordered(LOOKS).try_collect().await?;
        open = Vec::new();
        for (place, id, body) in answers {
            match parse::<StartView>(&body)?.state {
                StartState::Waiting | StartState::Starting => open.push((place, id)),
                StartState::Ready | StartState::Ended => views[place] = parse(&body)?,
            }
        }
        progress.set_position((views.len() - open.len()) as u64);
        if open.is_empty() {
            progress.finish_and_clear();
            return Ok(views);
        }
        if began.elapsed() >= timeout {
            return Err(Failure::Timeout(timeout));
        }
        tokio::time::sleep(POLL).await;
    }
}

fn state(start: &StartView) -> String {
    let name = match start.state {
        StartState::Waiting => "waiting",
        StartState::Starting => "starting",
        StartState::Ready => "ready",
        StartState::Ended => "ended",
    };
    start.reason.as_ref().map_or_else(|| name.to_owned(), |reason| format!("{name}: {reason}"))
}

fn list(starts: Vec<StartView>) -> String {
    let row = |start: StartView| {
        let vm = start.vm.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
        let accepted = start.accepted_at_ms.map_or_else(|| "-".to_owned(), moment);
        let ready = start.timeline_us.ready.map_or_else(|| "-".to_owned(), duration);
        let state = state(&start);
        let bytes = [start.bytes.parent, start.bytes.ancestor, start.bytes.origin].map(size);
        let [parent, ancestor, origin] = bytes;
        [start.id.to_string(), accepted, vm, ready, parent, ancestor, origin, state]
    };
    let heading = ["START", "ACCEPTED", "VM", "READY AFTER", "PARENT", "ANCESTOR", "ORIGIN", "STATE"];
    table(heading, starts.into_iter().map(row).collect())
}

fn show(start: &StartView, why: &Explanation) -> String {
    let bytes = start.bytes;
    let mut lines = vec![("start", start.id.to_string()), ("function", start.function.to_string())];
    if let Some(vm) = &start.vm {
        lines.push(("vm", vm.to_string()));
    }
    lines.push(("state", state(start)));
    if let Some(at_ms) = start.accepted_at_ms {
        lines.push(("accepted", moment(at_ms)));
    }
    if let Some(request) = &start.request_id {
        lines.push(("request", request.to_string()));
    }
    if let Some(ready) = start.timeline_us.ready {
        lines.push(("ready after", duration(ready)));
    }
    lines.push((
        "bytes",
        format!(
            "{} from the parent, {} from other VMs, {} from the origin",
            size(bytes.parent),
            size(bytes.ancestor),
            size(bytes.origin)
        ),
    ));
    let stalls = format!("{}, {} together", start.stalls, duration(start.stalled_us));
    lines.push(("stalls", stalls));
    lines.push(("longest stall", duration(start.longest_stall_us)));
    if let Some(stall) = &start.worst_stall {
        let from = stall.from.as_ref().map_or_else(|| "the origin".to_owned(), ToString::to_string);
        let (block, disk) = (stall.block.0, duration(stall.disk_us));
        lines.push(("", format!("block {block} from {from}, {disk} of it on its way to the disk")));
    }
    lines.push(("why", why.text.clone()));
    format!("{}\n{}", pairs(lines), waterfall(&start.timeline_us, why))
}

/// Characters for the whole time.
const WIDTH: u64 = 40;

/// One line for each phase that has been passed: where in the whole time it lay, its length, and how long it
/// usually is.
fn waterfall(timeline: &Timeline, why: &Explanation) -> String {
    let passed: u64 = Phase::ALL.into_iter().filter_map(|phase| phase.of(timeline)).sum();
    let whole = timeline.ready.unwrap_or(passed).max(passed).max(1);
    let mut before = 0;
    let mut text = String::new();
    if why.usual_us.is_some() {
        text += &format!("{:width$}  {:>9}  {:>9}\n", "", "", "USUALLY", width = 13 + WIDTH as usize);
    }
    for phase in Phase::ALL {
        let Some(length) = phase.of(timeline) else { continue };
        let usual = why.usual_us.as_ref().and_then(|usual| phase.of(usual));
        let usual = usual.map_or_else(String::new, |usual| format!("  {:>9}", duration(usual)));
        let name = phase.name();
        let from = (before * WIDTH / whole).min(WIDTH - 1);
        before += length;
        // Even the shortest phase is seen.
        let to = (before * WIDTH).div_ceil(whole).clamp(from + 1, WIDTH);
        let bar = format!("{}{}", " ".repeat(from as usize), "█".repeat((to - from) as usize));
        let length = duration(length);
        text += &format!("{name:11}  {bar:width$}  {length:>9}{usual}\n", width = WIDTH as usize);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use faasnet_actors::explain::Cause;

    fn why(usual_us: Option<Timeline>) -> Explanation {
        Explanation {
            start: "start-1".parse().expect("name"),
            cause: Cause::AsUsual,
            phase: None,
            lost_us: 0,
            text: String::new(),
            others: 0,
            usual_us,
        }
    }

    #[test]
    fn phases_follow_each_other_and_fill_the_width() {
        let timeline = Timeline {
            waiting: Some(10),
            run: Some(500),
            probe: Some(490),
            ready: Some(1000),
            ..Timeline::default()
        };
        let lines: Vec<String> = waterfall(&timeline, &why(None)).lines().map(str::to_owned).collect();
        let bar = |line: &str| line.chars().skip(13).take(40).collect::<String>();
        assert_eq!(lines.len(), 3);
        assert_eq!(bar(&lines[0]).trim_end(), "█");
        assert_eq!(bar(&lines[1]).trim_end(), "█".repeat(21));
        assert_eq!(bar(&lines[2]), format!("{}{}", " ".repeat(20), "█".repeat(20)));
        let usual = Timeline { run: Some(400), ..Timeline::default() };
        let lines: Vec<String> = waterfall(&timeline, &why(Some(usual))).lines().map(str::to_owned).collect();
        assert!(lines[0].ends_with("USUALLY") && lines[2].ends_with("500 µs     400 µs"), "{lines:?}");
    }

    #[test]
    fn a_start_that_has_not_begun_has_no_waterfall() {
        assert_eq!(waterfall(&Timeline::default(), &why(None)), "");
    }
}
