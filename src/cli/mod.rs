//! The command line. One file per verb; all verbs of clients go through the HTTP API.
//!
//! Exit codes: 0 done, 1 failed, 2 not understood, 22 an invoked instance answered with an error, 130 interrupted.

mod actors;
mod client;
mod completions;
mod doctor;
mod events;
mod failure;
mod function;
mod function_image;
mod image;
mod invoke;
mod logs;
mod openapi;
mod output;
mod preheat;
mod process;
mod screen;
mod start;
mod stop;
mod stream;
mod token;
mod tree;
mod upload;
mod vm;

pub(crate) use client::Client;
pub use failure::Failure;
pub use function_image::FunctionImage;
pub use image::{ImageCommand, run as run_image};
pub use process::Process;

use crate::settings::Settings;
use clap::{Parser, Subcommand};
use faasnet_actors::id::TenantId;
use output::Output;
use std::{
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

/// Sets the options of all verbs apart from those of one.
const EVERYWHERE: &str = "Options of all commands";

#[derive(Debug, Parser)]
#[command(
    name = "faasnet",
    version,
    about = "Starts containers on VMs that never had their image, block by block from each other",
    propagate_version = true,
    arg_required_else_help = true
)]
pub struct Cli {
    /// Settings that differ from the defaults
    #[arg(long, global = true, value_name = "FILE", help_heading = EVERYWHERE)]
    pub config: Option<PathBuf>,
    /// Print the API's JSON instead of tables
    #[arg(long, global = true, help_heading = EVERYWHERE)]
    pub json: bool,
    /// Where the API is [default: http.listen of the settings]
    #[arg(long, global = true, env = "FAASNET_API", value_name = "URL", help_heading = EVERYWHERE)]
    pub api: Option<String>,
    /// File with the API token; FAASNET_TOKEN holds one itself [default: admin.token in manager.data]
    #[arg(long, global = true, value_name = "FILE", help_heading = EVERYWHERE)]
    pub token_file: Option<PathBuf>,
    /// Tenant to act for, with a token for all tenants
    #[arg(long, global = true, env = "FAASNET_TENANT", value_name = "NAME", help_heading = EVERYWHERE)]
    pub tenant: Option<TenantId>,
    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    #[command(flatten)]
    Process(Process),
    #[command(flatten)]
    Command(Command),
    /// Convert images, look at what was made of them, and fit them to what starts read
    #[command(subcommand)]
    Image(Image),
}

/// What is done with images: here, or by the manager.
#[derive(Debug, Subcommand)]
pub enum Image {
    #[command(flatten)]
    Here(ImageCommand),
    #[command(flatten)]
    OfFunction(FunctionImage),
}

/// What a client asks of the manager, over its API.
#[derive(Debug, Subcommand)]
pub enum Command {
    #[command(flatten)]
    Client(ClientVerb),
    /// Print a script that completes commands in a shell
    Completions(completions::Completions),
    /// Print the description of the API as OpenAPI 3.1
    Openapi(openapi::OpenApi),
}

/// The verbs that go through the API.
#[derive(Debug, Subcommand)]
pub enum ClientVerb {
    /// Deploy, list, show and delete functions
    #[command(subcommand)]
    Function(function::Function),
    /// Start instances of a function, or look at starts
    Start(start::Start),
    /// End an instance
    Stop(stop::Stop),
    /// Send a request to a function
    Invoke(invoke::Invoke),
    /// Print the output of an instance
    Logs(logs::Logs),
    /// List, admit and remove VMs
    #[command(subcommand)]
    Vm(vm::Vm),
    /// Make, list and delete API tokens
    #[command(subcommand)]
    Token(token::Token),
    /// Show how the actors are: queues, permits, crashes
    Actors(actors::Actors),
    /// Show what happens, as it happens, until Ctrl-C
    Events(events::Events),
    /// Draw the tree along which the blocks of a function's image travel
    Tree(tree::Tree),
    /// Named `image`, beside what needs no manager.
    #[command(skip)]
    Image(FunctionImage),
}

/// What the verbs of clients work with.
struct Context<'a> {
    client: Client,
    output: Output<'a>,
}

/// What each client verb needs to know beside its own arguments.
#[derive(Debug)]
pub struct Access {
    pub json: bool,
    pub api: Option<String>,
    pub token_file: Option<PathBuf>,
    pub tenant: Option<TenantId>,
}

impl Command {
    /// Runs the verb; its results go to `out`, everything else to stderr.
    pub async fn run(
        self,
        access: Access,
        settings: &Settings,
        out: &mut (dyn Write + Send),
    ) -> Result<ExitCode, Failure> {
        match self {
            Self::Completions(completions) => completions.run(out),
            Self::Openapi(openapi) => openapi.run(out),
            Self::Client(verb) => {
                let token = token(access.token_file.as_deref(), settings)?;
                let client = Client::new(api_url(access.api, settings), token, access.tenant)?;
                verb.run(&mut Context { client, output: Output::new(out, access.json) }).await
            }
        }
    }
}

impl ClientVerb {
    async fn run(self, context: &mut Context<'_>) -> Result<ExitCode, Failure> {
        match self {
            Self::Function(function) => function.run(context).await,
            Self::Start(start) => start.run(context).await,
            Self::Stop(stop) => stop.run(context).await,
            Self::Invoke(invoke) => invoke.run(context).await,
            Self::Logs(logs) => logs.run(context).await,
            Self::Vm(vm) => vm.run(context).await,
            Self::Token(token) => token.run(context).await,
            Self::Actors(actors) => actors.run(context).await,
            Self::Events(events) => events.run(context).await,
            Self::Tree(tree) => tree.run(context).await,
            Self::Image(image) => image.run(context).await,
        }
    }
}

/// An API that listens on all addresses is reached on loopback.
fn api_url(given: Option<String>, settings: &Settings) -> String {
    let mut listen = settings.http.listen;
    if listen.ip().is_unspecified() {
        listen.set_ip(match listen {
            std::net::SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            std::net::SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    given.unwrap_or_else(|| format!("http://{listen}")).trim_end_matches('/').to_owned()
}

/// The token: FAASNET_TOKEN, the named file, or what the manager on this machine wrote.
fn token(file: Option<&Path>, settings: &Settings) -> Result<String, Failure> {
    let from_environment = std::env::var("FAASNET_TOKEN").ok().filter(|token| !token.is_empty());
    if let (None, Some(token)) = (file, from_environment) {
        return Ok(token.trim().to_owned());
    }
    let path = file.map_or_else(|| settings.manager.data.join("admin.token"), Path::to_owned);
    let text = std::fs::read_to_string(&path).map_err(|error| Failure::Token { path, error })?;
    Ok(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_grammar_has_no_contradiction() {
        Cli::command().debug_assert();
    }

    #[test]
    fn an_api_on_all_addresses_is_reached_on_loopback() {
        let mut settings = Settings::load(None).expect("defaults");
        settings.http.listen = "0.0.0.0:7070".parse().expect("an address");
        assert_eq!(api_url(None, &settings), "http://127.0.0.1:7070");
        settings.http.listen = "[::]:7070".parse().expect("an address");
        assert_eq!(api_url(None, &settings), "http://[::1]:7070");
        assert_eq!(api_url(Some("https://faas.example/".into()), &settings), "https://faas.example");
    }
}
