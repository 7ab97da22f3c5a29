//! `faasnet invoke NAME [PATH]`: a request through the gateway.

use super::{
    Context, Failure,
    client::{chain, is_problem, problem},
    failure::EXIT_ERROR_ANSWER,
};
use crate::http::{START_HEADER, VM_HEADER};
use clap::Args;
use faasnet_actors::id::{FunctionName, StartId};
use reqwest::{Body, Method, RequestBuilder, Response};
use std::process::ExitCode;
use tokio_util::io::ReaderStream;

#[derive(Debug, Args)]
pub struct Invoke {
    name: FunctionName,
    /// Path and query
    #[arg(default_value = "/")]
    path: String,
    /// Ask the instance of this start, not just any
    #[arg(long, value_name = "START_ID")]
    on: Option<StartId>,
    /// [default: GET, or POST with --data]
    #[arg(long, value_name = "METHOD")]
    method: Option<Method>,
    /// The body, or @ and the name of a file with it
    #[arg(long, value_name = "BODY|@FILE")]
    data: Option<String>,
    /// A further header; may be given again
    #[arg(short = 'H', long = "header", value_name = "K:V", value_parser = header)]
    headers: Vec<(String, String)>,
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("use NAME:VALUE")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

impl Invoke {
    pub(super) async fn run(self, context: &mut Context<'_>) -> Result<ExitCode, Failure> {
        let request = self.request(context).await?;
        let mut response = context.client.exchange(request).await?;
        let is_instances = response.headers().contains_key(START_HEADER);
        if !is_instances && is_problem(&response) {
            return Err(Failure::NotForwarded(problem(response).await?));
        }
        report(&response);
        let is_error = response.status().as_u16() >= 400;
        while let Some(chunk) = response.chunk().await.map_err(|error| {
            Failure::Answer(format!("the response is cut off: {}", chain(&error.without_url())))
        })? {
            context.output.bytes(&chunk)?;
        }
        Ok(if is_error { ExitCode::from(EXIT_ERROR_ANSWER) } else { ExitCode::SUCCESS })
    }

    async fn request(&self, context: &Context<'_>) -> Result<RequestBuilder, Failure> {
        let path = self.path.strip_prefix('/').unwrap_or(&self.path);
        // URLs are normalised: `..` would name another function.
        let steps_out =
            |segment: &str| matches!(segment.to_ascii_lowercase().replace("%2e", ".").as_str(), "." | "..");
        if path.split(['?', '#']).next().is_some_and(|path| path.split(['/', '\\']).any(steps_out)) {
            return Err(Failure::Usage("the path may not have the segments . and ..".into()));
        }
        let method = match (&self.method, &self.data) {
            (Some(method), _) => method.clone(),
            (None, Some(_)) => Method::POST,
            (None, None) => Method::GET,
        };
        let mut request = context.client.request(method, &format!("/fn/{}/{path}", self.name));
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        if let Some(start) = &self.on {
            request = request.header(START_HEADER, start.as_str());
        }
        Ok(match &self.data {
            None => request,
            Some(data) => request.body(body(data).await?),
        })
    }
}

async fn body(data: &str) -> Result<Body, Failure> {
    let Some(file) = data.strip_prefix('@') else { return Ok(Body::from(data.to_owned())) };
    let opened = tokio::fs::File::open(file)
        .await
        .map_err(|error| Failure::Usage(format!("the body cannot be read from {file}: {error}")))?;
    Ok(Body::wrap_stream(ReaderStream::new(opened)))
}

/// The status goes beside the body, which is the result.
fn report(response: &Response) {
    let text = |name| response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or("-");
    eprintln!("{} from {} on {}", response.status(), text(START_HEADER), text(VM_HEADER));
}
