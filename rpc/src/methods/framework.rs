//! The daemon itself: version, methods, reactors, end.

use serde::{Deserialize, Serialize};

use crate::RpcError;
use crate::schema::{METHODS, Method, method};

method! {
    /// The reactors and how busy they are, in SPDK's form.
    FrameworkGetReactors = "framework_get_reactors" -> Reactors;
    required {}
    optional {}
}

method! {
    /// The version of the daemon, in SPDK's form.
    SpdkGetVersion = "spdk_get_version" -> Version;
    required {}
    optional {}
}

impl SpdkGetVersion {
    /// The answer: this build's version.
    ///
    /// # Errors
    /// None; the form is that of [`crate::Handler::call`].
    pub fn answer(&self) -> Result<serde_json::Value, RpcError> {
        SpdkGetVersion::reply(Version::current())
    }
}

method! {
    /// Names of the methods.
    RpcGetMethods = "rpc_get_methods" -> Vec<String>;
    required {}
    optional {
        /// Accepted; every method can be called at any time.
        current: bool,
        /// Accepted; no method has a second name.
        include_aliases: bool,
    }
}

impl RpcGetMethods {
    /// The answer: the names in the table.
    ///
    /// # Errors
    /// None; the form is that of [`crate::Handler::call`].
    pub fn answer(&self) -> Result<serde_json::Value, RpcError> {
        RpcGetMethods::reply(METHODS.iter().map(|info| info.name.to_string()).collect())
    }
}

method! {
    /// Ends the daemon in good order, as the signal would.
    SpdkKillInstance = "spdk_kill_instance" -> bool;
    required {
        /// "SIGTERM" or "SIGINT", with or without SIG.
        sig_name: String,
    }
    optional {}
}

/// Answer of [`SpdkGetVersion`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// "Lamina major.minor.patch".
    pub version: String,
    /// The parts.
    pub fields: VersionFields,
}

impl Version {
    /// The version of this build.
    pub fn current() -> Version {
        let part = |text: &str| text.parse().unwrap_or(0);
        Version {
            version: format!("Lamina {}", env!("CARGO_PKG_VERSION")),
            fields: VersionFields {
                major: part(env!("CARGO_PKG_VERSION_MAJOR")),
                minor: part(env!("CARGO_PKG_VERSION_MINOR")),
                patch: part(env!("CARGO_PKG_VERSION_PATCH")),
                suffix: match env!("CARGO_PKG_VERSION_PRE") {
                    "" => String::new(),
                    pre => format!("-{pre}"),
                },
            },
        }
    }
}

/// The parts of a [`Version`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionFields {
    /// Changes when something old stops working.
    pub major: u32,
    /// Changes when something new works.
    pub minor: u32,
    /// Changes when something is mended.
    pub patch: u32,
    /// "-pre" or the like; "" for a release.
    pub suffix: String,
}

/// Answer of [`FrameworkGetReactors`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reactors {
    /// Ticks a second: 1,000,000,000.
    pub tick_rate: u64,
    /// Process id of the daemon.
    pub pid: u32,
    /// One a core.
    pub reactors: Vec<Reactor>,
}

/// One reactor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reactor {
    /// The core it runs on.
    pub lcore: u32,
    /// Ticks in turns that found work.
    pub busy: u64,
    /// Ticks in turns that found none, or asleep.
    pub idle: u64,
    /// True while it sleeps instead of polling.
    pub in_interrupt: bool,
    /// SPDK's lightweight threads; always empty.
    pub lw_threads: Vec<serde_json::Value>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_one_of_the_build() {
        let version = Version::current();
        let fields = &version.fields;
        let text =
            format!("Lamina {}.{}.{}{}", fields.major, fields.minor, fields.patch, fields.suffix);
        assert_eq!(version.version, text);
    }

    #[test]
    fn the_methods_listed_are_those_of_the_table() {
        let names: Vec<String> =
            serde_json::from_value(RpcGetMethods::default().answer().unwrap()).unwrap();
        assert_eq!(names.len(), METHODS.len());
        assert!(names.contains(&"bdev_lvol_create".to_string()));
    }
}
