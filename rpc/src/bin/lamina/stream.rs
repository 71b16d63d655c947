//! `lamina snapshot export` and `import`: snapshots as streams, to and from files and pipes.
//!
//! ```text
//!  export: daemon ─ socket ─► checked here ─► file or stdout        import: the other way
//!          --resume: the file is read to its last whole record, cut there, and goes on
//! ```

use std::fs::{File, OpenOptions};
use std::io::{IsTerminal, Read, Seek, SeekFrom, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use lamina_rpc::methods::{ImportDone, LaminaSnapshotExport, LaminaSnapshotImport};
use lamina_rpc::stream::{Decoder, uuid_text};
use serde_json::{Value, json};

use crate::answer::Answer;
use crate::failure::Failure;
use crate::session::{SEE_DISKS, SEE_TREE, Session};
use crate::size::human;

/// Bytes moved at once.
const PIECE_BYTES: usize = 256 << 10;
/// Longest answer of the daemon to an import, bytes.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

#[derive(Args)]
pub struct Export {
    /// The snapshot (DISK@LABEL, DISK@NUMBER or a UUID)
    snapshot: String,
    /// An older snapshot: only what changed since
    #[arg(long, value_name = "OLDER")]
    since: Option<String>,
    /// The file to write; - for standard output
    #[arg(long, short, value_name = "FILE")]
    output: String,
    /// Go on with a file that an earlier export left unfinished
    #[arg(long)]
    resume: bool,
    /// Overwrite the file if it exists
    #[arg(long, conflicts_with = "resume")]
    force: bool,
}

#[derive(Args)]
pub struct Import {
    /// The file to read; - for standard input
    file: String,
    /// Name of the new disk (or of one whose import broke off)
    #[arg(long, value_name = "NAME", required_unless_present = "onto")]
    disk: Option<String>,
    /// For an incremental stream: a clone of the older snapshot, or a disk that is still as that
    #[arg(long, value_name = "DISK", conflicts_with = "disk")]
    onto: Option<String>,
    /// Name of the store for the new disk; may be left out when one store is open
    #[arg(long, conflicts_with = "onto")]
    store: Option<String>,
}

/// Where a stream is kept.
enum Output {
    File(File),
    Stdout(std::io::Stdout),
}

impl Output {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        match self {
            Output::File(file) => file.write_all(bytes),
            Output::Stdout(stdout) => stdout.write_all(bytes),
        }
    }

    /// All of it is where it belongs, also after a power cut.
    fn finish(&mut self) -> std::io::Result<()> {
        match self {
            Output::File(file) => file.sync_all(),
            Output::Stdout(stdout) => stdout.flush(),
        }
    }
}

fn failed(path: &str, doing: &str, error: &std::io::Error) -> Failure {
    Failure::other(format!("{path} cannot be {doing}: {error}"))
}

pub fn export(session: &mut Session, arguments: &Export) -> Result<Answer, Failure> {
    let path = arguments.output.as_str();
    let named = session.resolve(&arguments.snapshot)?;
    let since = match &arguments.since {
        Some(since) => Some(session.resolve(since)?.uuid),
        None => None,
    };
    let mut decoder = Decoder::new();
    let mut output = open_output(arguments, &mut decoder)?;
    let resumed = decoder.header().is_some();
    if let Some(header) = decoder.header() {
        let of = (uuid_text(&header.snapshot), header.base.as_ref().map(uuid_text));
        if of != (named.uuid.clone(), since.clone()) {
            let why = format!("{path} has a stream of another snapshot, or since another");
            return Err(Failure::other(why).hint("export to another file, or say --force"));
        }
    }
    let from = decoder.mark().bytes;
    if !decoder.is_ended() {
        let resume = resumed.then(|| decoder.mark());
        let params = LaminaSnapshotExport { snapshot: named.uuid, since, resume };
        let opened = session
            .call(format!("opening a stream of {}", arguments.snapshot), &params)
            .map_err(|failure| {
            if !(arguments.resume || arguments.force || path == "-") {
                // It was made for this.
                let _ = std::fs::remove_file(path);
            }
            failure.hint(SEE_TREE)
        })?;
        receive(&opened.socket, path, &mut output, &mut decoder).map_err(|failure| match path {
            "-" => failure,
            _ => failure.hint(format!("`lamina snapshot export ... -o {path} --resume` goes on")),
        })?;
    }
    output.finish().map_err(|e| failed(path, "written", &e))?;
    let (mark, totals) = (decoder.mark(), decoder.mark().totals);
    let text = format!(
        "exported {} to {path}: {} of data, {} of holes, {} in all",
        arguments.snapshot,
        human(totals.data_bytes),
        human(totals.hole_bytes),
        human(mark.bytes),
    );
    if path == "-" {
        // What is printed would be part of the stream.
        eprintln!("{text}");
        return Ok(Answer::printed());
    }
    let answer = json!({
        "snapshot": arguments.snapshot, "output": path, "bytes": mark.bytes,
        "data": totals.data_bytes, "holes": totals.hole_bytes, "records": mark.record,
        "resumed_at": from,
    });
    Answer::new(text, answer)
}

/// The file, cut after its last whole record if it is to go on.
fn open_output(arguments: &Export, decoder: &mut Decoder) -> Result<Output, Failure> {
    let path = arguments.output.as_str();
    if path == "-" {
        if arguments.resume {
            return Err(Failure::usage("--resume needs a file: give its name with --output"));
        }
        if std::io::stdout().is_terminal() {
            return Err(Failure::usage("a stream is not for a terminal: give a file or a pipe"));
        }
        return Ok(Output::Stdout(std::io::stdout()));
    }
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    match (arguments.resume, arguments.force) {
        (true, _) => options.create(true).truncate(false),
        (false, true) => options.create(true).truncate(true),
        (false, false) => options.create_new(true),
    };
    let mut file = options.open(path).map_err(|e| {
        let failure = failed(path, "written", &e);
        match e.kind() {
            std::io::ErrorKind::AlreadyExists => {
                failure.hint("--resume goes on with it, --force overwrites it")
            }
            _ => failure,
        }
    })?;
    if arguments.resume {
        read_partial(path, &mut file, decoder)?;
    }
    Ok(Output::File(file))
}

fn read_partial(path: &str, file: &mut File, decoder: &mut Decoder) -> Result<(), Failure> {
    let mut buffer = vec![0; PIECE_BYTES];
    let mut wrong = None;
    'file: loop {
        loop {
            match decoder.next() {
                Ok(Some(_)) => {}
                Ok(None) => break,
                // Damage at the end is what a cut leaves; the stream is good up to there.
                Err(error) => {
                    wrong = Some(error);
                    break 'file;
                }
            }
        }
        let most = decoder.room().min(buffer.len());
        let got = file.read(&mut buffer[..most]).map_err(|e| failed(path, "read", &e))?;
        if got == 0 {
            break;
        }
        decoder.push(&buffer[..got]);
    }
    if let (Some(error), None) = (&wrong, decoder.header()) {
        let why = format!("{path} is not the beginning of a stream ({error})");
        return Err(Failure::other(why).hint("export to another file, or say --force"));
    }
    decoder.rewind();
    let good = decoder.mark().bytes;
    file.set_len(good).map_err(|e| failed(path, "cut", &e))?;
    file.seek(SeekFrom::Start(good)).map_err(|e| failed(path, "read", &e))?;
    Ok(())
}

/// From the daemon to the output, every record checked.
fn receive(
    socket: &str,
    path: &str,
    output: &mut Output,
    decoder: &mut Decoder,
) -> Result<(), Failure> {
    let mut stream = connect(socket)?;
    let mut buffer = vec![0; PIECE_BYTES];
    let bar = bar(0);
    while !decoder.is_ended() {
        let most = decoder.room().min(buffer.len());
        let got = stream
            .read(&mut buffer[..most])
            .map_err(|e| Failure::other(format!("the stream broke off: {e}")))?;
        if got == 0 {
            bar.finish_and_clear();
            let after = decoder.mark().record;
            return Err(Failure::other(format!(
                "the stream ends before its end, after record {after}: the daemon has ended"
            )));
        }
        output.write(&buffer[..got]).map_err(|e| failed(path, "written", &e))?;
        decoder.push(&buffer[..got]);
        loop {
            match decoder.next() {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(error) => {
                    bar.finish_and_clear();
                    return Err(Failure::other(error.to_string()));
                }
            }
        }
        if let Some(header) = decoder.header() {
            bar.set_length(header.size);
            bar.set_position(decoder.mark().offset);
        }
    }
    bar.finish_and_clear();
    Ok(())
}

pub fn import(session: &mut Session, arguments: &Import) -> Result<Answer, Failure> {
    let path = arguments.file.as_str();
    let mut input: Box<dyn Read> = match path {
        "-" => Box::new(std::io::stdin()),
        path => Box::new(File::open(path).map_err(|e| failed(path, "read", &e))?),
    };
    let length = Path::new(path).metadata().map_or(0, |meta| meta.len());
    let onto = arguments.onto.is_some();
    let disk = arguments.onto.clone().or_else(|| arguments.disk.clone()).unwrap_or_default();
    let params = LaminaSnapshotImport {
        disk: disk.clone(),
        onto: Some(onto),
        store: arguments.store.clone(),
    };
    let opened = session
        .call(format!("opening a stream into {disk}"), &params)
        .map_err(|failure| failure.hint(SEE_DISKS))?;
    let mut stream = connect(&opened.socket)?;
    let bar = bar(length);
    let sent = send(input.as_mut(), path, &mut stream, &bar);
    bar.finish_and_clear();
    // What the daemon says tells more than that it does not listen any more.
    let done = answer(&mut stream)?;
    sent?;
    let text = format!(
        "imported {path} as {} ({}): {} written{}",
        done.snapshot,
        done.uuid,
        human(done.written),
        match done.resumed_at {
            0 => String::new(),
            at => format!(", went on from {}", human(at)),
        }
    );
    Answer::new(text, done)
}

fn send(
    input: &mut dyn Read,
    path: &str,
    stream: &mut UnixStream,
    bar: &ProgressBar,
) -> Result<(), Failure> {
    let mut buffer = vec![0; PIECE_BYTES];
    loop {
        let got = match input.read(&mut buffer) {
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            got => got.map_err(|e| failed(path, "read", &e)),
        };
        let got = match got {
            Ok(0) | Err(_) => {
                // The daemon keeps what it has.
                let _ = stream.shutdown(Shutdown::Write);
                return got.map(|_| ());
            }
            Ok(got) => got,
        };
        if let Err(e) = stream.write_all(&buffer[..got]) {
            return Err(Failure::other(format!("the daemon takes no more: {e}")));
        }
        bar.inc(got as u64);
    }
}

/// The daemon's last word.
fn answer(stream: &mut UnixStream) -> Result<ImportDone, Failure> {
    let mut text = String::new();
    let read = stream.take(ANSWER_BYTES_MAX).read_to_string(&mut text);
    let value: Value = match serde_json::from_str(&text) {
        Ok(value) => value,
        Err(_) => {
            let why = match read {
                Err(e) => format!("the daemon broke off: {e}"),
                Ok(_) => "the daemon has ended before the import had".to_string(),
            };
            return Err(Failure::other(why).hint("import the same again: it goes on"));
        }
    };
    if let Some(message) = value["error"]["message"].as_str() {
        return Err(Failure::other(message));
    }
    serde_json::from_value(value)
        .map_err(|e| Failure::other(format!("the daemon's answer is not understood: {e}")))
}

fn connect(socket: &str) -> Result<UnixStream, Failure> {
    UnixStream::connect(socket)
        .map_err(|e| Failure::other(format!("the stream at {socket} cannot be opened: {e}")))
}

/// A bar on a terminal's stderr; nothing where nobody looks.
fn bar(length: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(length);
    let form = "{wide_bar} {bytes} of {total_bytes} {percent}% {eta}";
    // A fixed template: it is right or it is not, and the default does as well.
    if let Ok(style) = ProgressStyle::with_template(form) {
        bar.set_style(style);
    }
    bar
}
