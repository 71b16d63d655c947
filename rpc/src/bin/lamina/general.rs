//! The commands that are about the daemon and this program: `checkpoint`, `rpc`, `completions`,
//! `version`.

use clap::Args;
use clap_complete::Shell;
use lamina_rpc::methods::{LaminaCheckpoint, SpdkGetVersion, Version};
use lamina_rpc::schema::{METHODS, MethodInfo, find};
use serde_json::{Value, json};

use crate::answer::Answer;
use crate::failure::Failure;
use crate::session::{SEE_STORES, Session};

#[derive(Args)]
#[command(after_help = "Examples:\n  lamina checkpoint\n  lamina checkpoint pool")]
pub struct CheckpointArguments {
    /// Name or UUID of the store; all if left out
    store: Option<String>,
}

pub fn checkpoint(
    session: &mut Session,
    arguments: CheckpointArguments,
) -> Result<Answer, Failure> {
    let params = LaminaCheckpoint { store: arguments.store };
    let done = session
        .call("writing a consistency point", &params)
        .map_err(|failure| failure.hint(SEE_STORES))?;
    Answer::new("wrote a consistency point", done)
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  lamina rpc --list
  lamina rpc bdev_get_bdevs
  lamina rpc bdev_lvol_resize '{\"name\": \"vm1\", \"size_in_mib\": 20480}'")]
pub struct RpcArguments {
    /// The method
    #[arg(required_unless_present = "list")]
    method: Option<String>,
    /// Its parameters, a JSON object
    #[arg(value_name = "JSON")]
    params: Option<String>,
    /// List the methods with their parameters (or describe METHOD), without calling anything
    #[arg(long, conflicts_with = "params")]
    list: bool,
}

pub fn rpc(session: &mut Session, arguments: RpcArguments) -> Result<Answer, Failure> {
    if arguments.list {
        return list_methods(arguments.method.as_deref());
    }
    let method = arguments.method.unwrap_or_default();
    let params: Value = match &arguments.params {
        None => json!({}),
        Some(text) => serde_json::from_str(text)
            .map_err(|error| Failure::usage(format!("the parameters are not JSON: {error}")))?,
    };
    if !params.is_object() && !params.is_null() {
        return Err(Failure::usage("the parameters are not a JSON object, as {\"name\": \"vm1\"}"));
    }
    let params = if params.is_null() { json!({}) } else { params };
    let result = session.call_raw(&method, &params).map_err(|failure| match failure.code() {
        Some(-32602) => failure.hint(format!("`lamina rpc --list {method}` shows what it takes")),
        Some(-32601) => failure.hint("`lamina rpc --list` shows the methods"),
        _ => failure,
    })?;
    // What a method answers is JSON in either form.
    Answer::new(format!("{result:#}"), result)
}

fn list_methods(method: Option<&str>) -> Result<Answer, Failure> {
    let methods: Vec<&MethodInfo> = match method {
        None => METHODS.iter().collect(),
        Some(name) => vec![find(name).ok_or_else(|| {
            Failure::usage(format!("there is no method {name:?}"))
                .hint("`lamina rpc --list` shows the methods")
        })?],
    };
    let text: Vec<String> = methods.iter().map(|info| describe(info)).collect();
    let json: Vec<Value> = methods.iter().map(|info| describe_json(info)).collect();
    Answer::new(text.join("\n"), json)
}

/// Documentation as one line.
fn one_line(docs: &str) -> String {
    docs.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn describe(info: &MethodInfo) -> String {
    let mut out = format!("{}\n    {}\n", info.name, one_line(info.docs));
    for field in info.params {
        let name = if field.required { field.name.into() } else { format!("[{}]", field.name) };
        out.push_str(&format!("      {name}: {}\n", one_line(field.docs)));
    }
    out
}

fn describe_json(info: &MethodInfo) -> Value {
    let params: Vec<Value> = info
        .params
        .iter()
        .map(|field| {
            json!({
                "name": field.name,
                "type": field.kind,
                "required": field.required,
                "docs": one_line(field.docs),
            })
        })
        .collect();
    json!({ "name": info.name, "docs": one_line(info.docs), "params": params })
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  lamina completions bash > /etc/bash_completion.d/lamina
  lamina completions zsh > \"${fpath[1]}/_lamina\"
  lamina completions fish > ~/.config/fish/completions/lamina.fish")]
pub struct CompletionsArguments {
    /// The shell
    shell: Shell,
}

pub fn completions(arguments: &CompletionsArguments) -> Result<Answer, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut crate::command_line(), "lamina", &mut script);
    let script = String::from_utf8_lossy(&script).into_owned();
    let json = json!({ "shell": arguments.shell.to_string(), "script": script });
    Answer::new(script, json)
}

pub fn version(session: &mut Session) -> Result<Answer, Failure> {
    let ours = Version::current().version;
    let daemon = match session.call("asking the daemon", &SpdkGetVersion::default()) {
        Ok(version) => Some(version.version),
        // That nobody answers is an answer here.
        Err(failure) if failure.is_unreachable() => None,
        Err(failure) => return Err(failure),
    };
    let text = format!(
        "lamina:  {ours}\nlaminad: {}\n",
        daemon.as_deref().unwrap_or("not reached; is it running?")
    );
    Answer::new(text, json!({ "lamina": ours, "laminad": daemon }))
}
