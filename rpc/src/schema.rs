//! The table of methods: one row a method, and everything that must agree is made from it.
//!
//! ```text
//!  method! { name, parameters, result, docs }      in methods/*.rs, one row
//!      ├─► struct of parameters (serde, unknown keys refused; `relaxed`: left out)
//!      └─► MethodInfo (docs, for help)
//!  calls! { every row }                             below
//!      ├─► enum Call, what a Handler gets
//!      ├─► Call::decode(name, params text)
//!      └─► METHODS, what rpc_get_methods lists
//! ```

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::RpcError;
use crate::methods::{
    bdev, check, events, framework, keyring, lvol, nvmf, snapshot, store, stream, vhost,
};

/// One parameter, for help and documentation.
#[derive(Clone, Copy, Debug)]
pub struct FieldInfo {
    /// Its key.
    pub name: &'static str,
    /// Its type, as Rust writes it.
    pub kind: &'static str,
    /// False: may be left out, or be null.
    pub required: bool,
    /// What it means, with its unit.
    pub docs: &'static str,
}

/// One method, for help and documentation.
#[derive(Clone, Copy, Debug)]
pub struct MethodInfo {
    /// Its name on the wire.
    pub name: &'static str,
    /// What it does.
    pub docs: &'static str,
    /// Its parameters.
    pub params: &'static [FieldInfo],
}

/// A struct of parameters that knows its method: name on the wire, and type of the answer.
pub trait Method: Serialize + DeserializeOwned {
    /// Name and documentation.
    const INFO: MethodInfo;

    /// What a call that went well answers.
    type Output: Serialize + DeserializeOwned;

    /// The answer of a [`crate::Handler`], its type checked while compiling.
    ///
    /// # Errors
    /// An internal error if `output` has no JSON form (a map with keys that are not strings).
    fn reply(output: Self::Output) -> Result<serde_json::Value, RpcError> {
        serde_json::to_value(output).map_err(|error| RpcError::internal(error.to_string()))
    }
}

/// One row of the table: see the picture above. `relaxed` before it: keys that are not known are
/// ignored, as SPDK does for the methods whose parameters grow with every version.
macro_rules! method {
    (relaxed $($row:tt)+) => {
        crate::schema::method! { @row [] $($row)+ }
    };
    (
        @row [$($strict:tt)*]
        $(#[doc = $doc:literal])+
        $name:ident = $wire:literal -> $output:ty;
        required { $( $(#[doc = $required_doc:literal])+ $required:ident: $required_type:ty, )* }
        optional { $( $(#[doc = $optional_doc:literal])+ $optional:ident: $optional_type:ty, )* }
    ) => {
        $(#[doc = $doc])+
        #[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        $($strict)*
        pub struct $name {
            $(
                $(#[doc = $required_doc])+
                pub $required: $required_type,
            )*
            $(
                $(#[doc = $optional_doc])+
                #[serde(default, skip_serializing_if = "Option::is_none")]
                pub $optional: Option<$optional_type>,
            )*
        }

        impl crate::schema::Method for $name {
            const INFO: crate::schema::MethodInfo = crate::schema::MethodInfo {
                name: $wire,
                docs: concat!($($doc, "\n"),+),
                params: &[
                    $( crate::schema::FieldInfo {
                        name: stringify!($required),
                        kind: stringify!($required_type),
                        required: true,
                        docs: concat!($($required_doc, "\n"),+),
                    }, )*
                    $( crate::schema::FieldInfo {
                        name: stringify!($optional),
                        kind: stringify!($optional_type),
                        required: false,
                        docs: concat!($($optional_doc, "\n"),+),
                    }, )*
                ],
            };
            type Output = $output;
        }
    };
    ($($row:tt)+) => {
        crate::schema::method! { @row [#[serde(deny_unknown_fields)]] $($row)+ }
    };
}
pub(crate) use method;

/// All rows: the closed enum, its decoder and the list of names.
macro_rules! calls {
    ($( $module:ident :: $name:ident, )+) => {
        /// A call with its parameters decoded: what a [`crate::Handler`] carries out.
        #[derive(Clone, Debug, PartialEq, Eq)]
        #[expect(missing_docs, reason = "each variant is its parameters, documented there")]
        pub enum Call {
            $( $name($module::$name), )+
        }

        /// Every method, in the order of the table.
        pub const METHODS: &[MethodInfo] = &[ $( <$module::$name as Method>::INFO, )+ ];

        impl Call {
            /// The method of this name with these parameters (a JSON object as text).
            ///
            /// # Errors
            /// No such method (-32601); parameters that do not fit it (-32602).
            pub fn decode(method: &str, params: &str) -> Result<Call, RpcError> {
                $(
                    if method == <$module::$name as Method>::INFO.name {
                        return decode_params::<$module::$name>(params).map(Call::$name);
                    }
                )+
                Err(RpcError::method_not_found(method))
            }

            /// What is known of the method called.
            pub fn info(&self) -> &'static MethodInfo {
                match self {
                    $( Call::$name(_) => const { &<$module::$name as Method>::INFO }, )+
                }
            }
        }
    };
}

calls! {
    store::LaminaStoreCreate,
    store::LaminaStoreOpen,
    store::LaminaStoreClose,
    store::LaminaStoreInfo,
    store::LaminaCheckpoint,
    store::LaminaStats,
    store::LaminaTree,
    events::LaminaGetEvents,
    events::LaminaStoreSetWarnings,
    check::LaminaCheck,
    check::LaminaCheckStatus,
    lvol::BdevLvolGetLvstores,
    lvol::BdevLvolCreate,
    lvol::BdevLvolClone,
    lvol::BdevLvolSnapshot,
    lvol::BdevLvolResize,
    lvol::BdevLvolRename,
    lvol::BdevLvolDelete,
    lvol::BdevLvolGetLvols,
    snapshot::LaminaDiskInfo,
    snapshot::LaminaSnapshotList,
    snapshot::LaminaSnapshotLabel,
    stream::LaminaSnapshotDiff,
    stream::LaminaSnapshotExport,
    stream::LaminaSnapshotImport,
    bdev::BdevGetBdevs,
    bdev::BdevGetIostat,
    vhost::VhostCreateBlkController,
    vhost::VhostGetControllers,
    vhost::VhostDeleteController,
    nvmf::NvmfCreateTransport,
    nvmf::NvmfGetTransports,
    nvmf::NvmfCreateSubsystem,
    nvmf::NvmfDeleteSubsystem,
    nvmf::NvmfGetSubsystems,
    nvmf::NvmfSubsystemAddNs,
    nvmf::NvmfSubsystemRemoveNs,
    nvmf::NvmfSubsystemSetNsAnaGroup,
    nvmf::NvmfSubsystemAddListener,
    nvmf::NvmfSubsystemRemoveListener,
    nvmf::NvmfSubsystemGetListeners,
    nvmf::NvmfSubsystemListenerSetAnaState,
    nvmf::NvmfSubsystemAddHost,
    nvmf::NvmfSubsystemSetKeys,
    nvmf::NvmfSubsystemRemoveHost,
    nvmf::NvmfSubsystemAllowAnyHost,
    nvmf::NvmfSubsystemGetControllers,
    nvmf::NvmfSubsystemGetQpairs,
    nvmf::NvmfDiscoveryAddReferral,
    nvmf::NvmfDiscoveryRemoveReferral,
    nvmf::NvmfDiscoveryGetReferrals,
    nvmf::NvmfGetStats,
    keyring::KeyringFileAddKey,
    keyring::KeyringFileRemoveKey,
    keyring::KeyringGetKeys,
    framework::FrameworkGetReactors,
    framework::SpdkGetVersion,
    framework::RpcGetMethods,
    framework::SpdkKillInstance,
}

/// What is known of the method of this name.
pub fn find(method: &str) -> Option<&'static MethodInfo> {
    METHODS.iter().find(|info| info.name == method)
}

/// Decodes parameters strictly: unknown keys, duplicate keys and positional parameters are errors.
fn decode_params<T: Method>(params: &str) -> Result<T, RpcError> {
    // serde would take an array for a struct, by position; no SPDK method does.
    if !params.trim_start().starts_with('{') {
        return Err(RpcError::invalid_params(format!(
            "{} takes an object of named parameters",
            T::INFO.name
        )));
    }
    serde_json::from_str(params).map_err(|error| {
        let text = error.to_string();
        // The position is one in the parameters, which the caller never saw as such.
        let end = text.rfind(" at line ").unwrap_or(text.len());
        RpcError::invalid_params(format!("{}: {}", T::INFO.name, &text[..end]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_documented() {
        for (i, info) in METHODS.iter().enumerate() {
            assert!(!info.docs.trim().is_empty(), "{}", info.name);
            assert!(METHODS[i + 1..].iter().all(|other| other.name != info.name), "{}", info.name);
            assert_eq!(find(info.name).map(|found| found.name), Some(info.name));
        }
        assert!(find("no_such_method").is_none());
    }

    #[test]
    fn every_row_says_which_required_parameter_is_missing() {
        for info in METHODS {
            match (Call::decode(info.name, "{}"), info.params.iter().find(|f| f.required)) {
                (Ok(call), None) => assert_eq!(call.info().name, info.name),
                (Err(error), Some(field)) => {
                    assert_eq!(error.code, RpcError::INVALID_PARAMS);
                    assert!(error.message.contains(field.name), "{}", error.message);
                }
                (outcome, field) => panic!("{}: {outcome:?} with {field:?}", info.name),
            }
        }
    }

    #[test]
    fn unknown_duplicate_and_positional_parameters_are_refused() {
        for params in [
            r#"{"name":"d","names":"d"}"#,
            r#"{"name":"d","name":"d"}"#,
            r#"["d"]"#,
            "5",
            r#"{"name":5}"#,
        ] {
            let error = Call::decode("bdev_lvol_delete", params).unwrap_err();
            assert_eq!(error.code, RpcError::INVALID_PARAMS, "{params}");
            assert!(!error.message.contains(" line "), "{}", error.message);
        }
        let error = Call::decode("bdev_lvol_delete", r#"{"nam":"d"}"#).unwrap_err();
        assert!(
            error.message.contains("unknown field `nam`, expected `name`"),
            "{}",
            error.message
        );
    }

    #[test]
    fn null_stands_for_an_optional_parameter_left_out() {
        let call = Call::decode("bdev_get_bdevs", r#"{"name":null}"#);
        assert_eq!(call, Ok(Call::BdevGetBdevs(bdev::BdevGetBdevs::default())));
    }
}
