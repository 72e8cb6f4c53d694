//! `stagepost render`: what the objects of some manifests make of one message. Nothing is started, nothing is called.
//!
//! `message` reads what goes in, `way` takes it along the objects, `show` prints what came of it.

mod message;
mod show;
mod way;

use std::path::PathBuf;

use clap::ValueEnum;
use http::{HeaderName, HeaderValue, Method};

use self::message::Draft;
use self::way::{Entry, Way};
use super::{Exit, failed};
use crate::local::names::{InvalidFlag, Wanted, Which};
use crate::plan::load::{self, Loaded, Manifests, Options};
use crate::plan::overlap;
use crate::plan::validate::Kind;
use crate::plan::world::Named;
use crate::telemetry::console;

/// Flags of `stagepost render`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Files or folders with manifests
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// The file with the body, - for stdin [default: an empty body]
    #[arg(short, long, value_name = "FILE")]
    message: Option<PathBuf>,
    /// Path and query of the request [default: that of the rules, if they have one only]
    #[arg(long, value_name = "PATH", value_parser = message::path)]
    path: Option<http::uri::PathAndQuery>,
    /// Its method
    #[arg(long, value_name = "METHOD", default_value = "POST")]
    method: Method,
    /// A header; repeatable. Content-Type is by default what the body looks like
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE", value_parser = message::header)]
    headers: Vec<(HeaderName, HeaderValue)>,
    /// Where it comes in: an IngressRoute, a MessageStore or a ForwardingProcessor [default: the routes; without any,
    /// the only processor]
    #[arg(long, value_name = "KIND/NAME", value_parser = object)]
    object: Option<(Kind, Wanted)>,
    /// For scripts
    #[arg(short, long, value_enum)]
    output: Option<Output>,
    /// Namespace of objects that name none
    #[arg(long, value_name = "NAMESPACE", default_value = "default")]
    namespace: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Json,
}

/// Why there is nothing to show.
#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error("{0}: cannot be read; check the path")]
    Message(String, #[source] std::io::Error),
    #[error("{0}: has more than {most} bytes, which no store takes; send less", most = crate::core::message::MAX_BODY_BYTES)]
    TooLarge(String),
    #[error("--object: {0}")]
    Object(#[from] Which),
    #[error("the files hold {0}; say with --object KIND/NAME where the message comes in")]
    NoEntry(&'static str),
    #[error("give the path of the request with --path; the rules have {0}")]
    NoPath(String),
    #[error("{0}")]
    Overlap(String),
    #[error("{0}")]
    Invalid(String),
}

/// `KIND/NAME` or `KIND/NAMESPACE/NAME`.
fn object(text: &str) -> Result<(Kind, Wanted), String> {
    let kinds = Kind::ALL.map(Kind::as_str).join(", ");
    let (kind, name) = text.split_once('/').ok_or_else(|| format!("write it as KIND/NAME; the kinds are {kinds}"))?;
    let kind = Kind::ALL.into_iter().find(|known| known.as_str().eq_ignore_ascii_case(kind));
    let kind = kind.ok_or_else(|| format!("the kinds are {kinds}"))?;
    Ok((kind, name.parse().map_err(|error: InvalidFlag| error.to_string())?))
}

pub(super) fn run(args: &Args) -> Exit {
    let options = Options { default_namespace: args.namespace.clone(), ..Options::default() };
    let manifests = load::load(&args.paths, &options);
    if !manifests.is_valid() {
        manifests.violations.iter().for_each(|violation| eprintln!("error: {violation}"));
        return Exit::Invalid;
    }
    let way = match take_along(args, &manifests) {
        Ok(way) => way,
        Err(problem @ Problem::Invalid(_)) => return failed(Exit::Invalid, &problem),
        Err(problem) => return failed(Exit::Usage, &problem),
    };
    if args.output == Some(Output::Json) {
        console::print(&format!("{:#}", show::json(&way)));
    } else {
        for line in show::text(&way) {
            console::print(&line);
        }
        way.errors().for_each(|error| eprintln!("error: {error}"));
    }
    if way.errors().next().is_none() { Exit::Done } else { Exit::Invalid }
}

fn take_along(args: &Args, manifests: &Manifests) -> Result<Way, Problem> {
    let entry = entry(args.object.as_ref(), manifests)?;
    let draft = Draft::read(args)?;
    way::follow(manifests, &entry, draft)
}

/// Where the message comes in.
fn entry<'m>(wanted: Option<&(Kind, Wanted)>, manifests: &'m Manifests) -> Result<Entry<'m>, Problem> {
    let Manifests { routes, processors, stores, .. } = manifests;
    match wanted {
        Some((Kind::IngressRoute, wanted)) => Ok(Entry::Routes(vec![named(wanted, routes)?])),
        Some((Kind::MessageStore, wanted)) => Ok(Entry::Store(named(wanted, stores)?)),
        Some((Kind::ForwardingProcessor, wanted)) => Ok(Entry::Processor(named(wanted, processors)?)),
        None if !routes.is_empty() => {
            if let Some(overlap) =
                overlap::overlapping_routes(routes.iter().filter_map(|route| route.plan.as_ref())).first()
            {
                let ((one, _), (other, _)) = (overlap.first, overlap.second);
                let (one, other) = (&one.object.name, &other.object.name);
                return Err(Problem::Overlap(format!(
                    "the IngressRoutes `{one}` and `{other}` can take the same request; choose one with --object IngressRoute/NAME"
                )));
            }
            Ok(Entry::Routes(routes.iter().collect()))
        }
        None => match processors.as_slice() {
            [only] => Ok(Entry::Processor(only)),
            [] => Err(Problem::NoEntry("neither an IngressRoute nor a ForwardingProcessor")),
            _ => Err(Problem::NoEntry("no IngressRoute and several ForwardingProcessors")),
        },
    }
}

fn named<'m, K: Named, P>(wanted: &Wanted, objects: &'m [Loaded<K, P>]) -> Result<&'m Loaded<K, P>, Which> {
    let names = objects.iter().map(|loaded| (loaded.object.namespace(), loaded.object.name()));
    let found = wanted.find(names)?;
    let is = |loaded: &&Loaded<K, P>| (loaded.object.namespace(), loaded.object.name()) == found;
    objects.iter().find(is).ok_or_else(|| Which::None(wanted.to_string()))
}
