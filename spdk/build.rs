//! Finds SPDK, makes bindings of its headers, and says what to link.
//!
//! ```text
//!  SPDK_DIR/build/{include,lib}  ─┐
//!  pkg-config spdk_event         ─┴─► bindgen ─► OUT_DIR/bindings.rs
//!                                 └─► -L, -l for the library and the program
//! ```

use std::path::{Path, PathBuf};

/// Versions that this crate has been built and tested with.
const TRIED: &str = "SPDK 26.09 with DPDK 22.11";
const TRIED_VERSION: (u32, u32) = (26, 9);
const PACKAGE: &str = "spdk_event";

/// Everything that `spdk_tgt` consists of; the order is that of use.
const PROGRAM_LIBS: &[&str] = &[
    "spdk_event_vhost_blk",
    "spdk_event_vhost_scsi",
    "spdk_event_nvmf",
    "spdk_event_iscsi",
    "spdk_event_nbd",
    "spdk_event_scsi",
    "spdk_event_bdev",
    "spdk_event_accel",
    "spdk_event_iobuf",
    "spdk_event_sock",
    "spdk_event_scheduler",
    "spdk_event_keyring",
    "spdk_event_vmd",
    "spdk_bdev_malloc",
    "spdk_bdev_null",
    "spdk_bdev_nvme",
    "spdk_bdev_passthru",
    "spdk_bdev_lvol",
    "spdk_bdev_raid",
    "spdk_bdev_error",
    "spdk_bdev_gpt",
    "spdk_bdev_split",
    "spdk_bdev_delay",
    "spdk_bdev_zone_block",
    "spdk_bdev_aio",
    "spdk_bdev_uring",
    "spdk_bdev_ftl",
    "spdk_bdev_virtio",
    "spdk_accel_error",
    "spdk_accel_ioat",
    "spdk_accel_ae4dma",
    "spdk_accel_dsa",
    "spdk_accel_iaa",
    "spdk_sock_posix",
    "spdk_sock_uring",
    "spdk_keyring_file",
    "spdk_keyring_linux",
    "spdk_scheduler_dynamic",
    "spdk_scheduler_dpdk_governor",
    "spdk_scheduler_gscheduler",
    "spdk_env_dpdk_rpc",
];

/// What the module itself calls.
const MODULE_LIBS: &[&str] = &[
    "spdk_vhost",
    "spdk_event",
    "spdk_bdev",
    "spdk_thread",
    "spdk_rpc",
    "spdk_jsonrpc",
    "spdk_json",
    "spdk_util",
    "spdk_log",
    "spdk_env_dpdk",
];

/// Where SPDK is.
struct Spdk {
    includes: Vec<PathBuf>,
    libs: Vec<PathBuf>,
}

fn main() {
    println!("cargo::rerun-if-env-changed=SPDK_DIR");
    println!("cargo::rerun-if-changed=wrapper.h");
    let spdk = match find() {
        Ok(spdk) => spdk,
        Err(why) => stop(&format!(
            "{why}: build SPDK with `./configure --with-shared && make`, then set SPDK_DIR to its \
             folder or put its build/lib/pkgconfig into PKG_CONFIG_PATH (tried: {TRIED})"
        )),
    };
    check_version(&spdk);
    bind(&spdk);
    link(&spdk);
}

/// The one sentence that a build without SPDK ends with.
fn stop(why: &str) -> ! {
    println!("cargo::error={why}");
    std::process::exit(1);
}

fn find() -> Result<Spdk, String> {
    if let Some(dir) = std::env::var_os("SPDK_DIR") {
        let build = PathBuf::from(&dir).join("build");
        let (include, lib) = (build.join("include"), build.join("lib"));
        if !include.join("spdk/bdev_module.h").exists() {
            return Err(format!("SPDK_DIR={} has no SPDK that was built", build.display()));
        }
        return Ok(Spdk { includes: vec![include], libs: vec![lib] });
    }
    let mut config = pkg_config::Config::new();
    match config.cargo_metadata(false).env_metadata(true).probe(PACKAGE) {
        Ok(found) => Ok(Spdk { includes: found.include_paths, libs: found.link_paths }),
        Err(_) => Err("SPDK was not found (neither SPDK_DIR nor pkg-config spdk_event)".into()),
    }
}

/// A version that was not tried may do; whoever builds with it is told.
fn check_version(spdk: &Spdk) {
    let header = spdk.includes.iter().map(|dir| dir.join("spdk/version.h")).find(|p| p.exists());
    let text = header.and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
    let number = |name: &str| -> Option<u32> {
        let line = text.lines().find(|line| line.contains(&format!("define {name}\t")))?;
        line.split_whitespace().last()?.parse().ok()
    };
    let found = number("SPDK_VERSION_MAJOR").zip(number("SPDK_VERSION_MINOR"));
    if found != Some(TRIED_VERSION) {
        println!("cargo::warning=this SPDK is {found:?}; tried was only {TRIED}");
    }
}

fn bind(spdk: &Spdk) {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let bindings = bindgen::Builder::default()
        .header("wrapper.h")
        .clang_args(spdk.includes.iter().map(|dir| format!("-I{}", dir.display())))
        .allowlist_function("spdk_.*")
        .allowlist_type("spdk_.*")
        .allowlist_var("SPDK_.*")
        // Packed, with aligned parts: Rust has no such type, and we need neither.
        .opaque_type("spdk_bdev_ext_io_opts")
        .opaque_type("spdk_nvme_ctrlr_data")
        .default_enum_style(bindgen::EnumVariation::Consts)
        .prepend_enum_name(false)
        .derive_debug(false)
        .layout_tests(false)
        .generate_comments(false)
        .rust_edition(bindgen::RustEdition::Edition2024)
        .generate();
    match bindings {
        Ok(bindings) => bindings.write_to_file(out.join("bindings.rs")).expect("OUT_DIR is ours"),
        Err(e) => stop(&format!("bindings of SPDK's headers cannot be made (tried: {TRIED}): {e}")),
    }
}

fn link(spdk: &Spdk) {
    let shared = |dir: &PathBuf, name: &str| dir.join(format!("lib{name}.so")).exists();
    let Some(dir) = spdk.libs.iter().find(|dir| shared(dir, "spdk_event")).cloned() else {
        stop(&format!(
            "SPDK is there, but without shared libraries: configure it --with-shared (tried: {TRIED})"
        ));
    };
    println!("cargo::rustc-link-search=native={}", dir.display());
    // The old kind of path: it goes before the environment's and the system's.
    println!("cargo::rustc-link-arg=-Wl,--disable-new-dtags,-rpath,{}", dir.display());
    for name in MODULE_LIBS {
        println!("cargo::rustc-link-lib=dylib={name}");
    }
    // Modules register themselves when they are loaded; nothing refers to them by name. What SPDK's
    // libraries need of DPDK and of the system they do not name themselves: it keeps lists.
    let ours =
        PROGRAM_LIBS.iter().filter(|name| shared(&dir, name)).map(|name| format!("-l{name}"));
    let dpdk = listed(&dir, "spdk_dpdklibs.pc");
    let system = listed(&dir, "spdk_syslibs.pc");
    let all: Vec<String> = ours.chain(system).chain(dpdk).collect();
    println!("cargo::rustc-link-arg-bins=-Wl,--no-as-needed");
    for arg in all.iter().filter(|arg| arg.starts_with("-L")).chain(&all) {
        println!("cargo::rustc-link-arg-bins={arg}");
    }
    println!("cargo::rustc-link-arg-bins=-Wl,--as-needed");
    // What SPDK has built for itself goes before what the system has of the same name.
    for own in
        all.iter().filter_map(|arg| arg.strip_prefix("-L")).filter(|d| !d.starts_with("/usr"))
    {
        println!("cargo::rustc-link-arg-bins=-Wl,-rpath,{own}");
    }
}

/// Folders and libraries in one of SPDK's own lists; not those that are named and not there.
fn listed(dir: &Path, name: &str) -> Vec<String> {
    let text = std::fs::read_to_string(dir.join("pkgconfig").join(name)).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Libs:")).unwrap_or_default();
    let folders: Vec<&Path> =
        line.split_whitespace().filter_map(|arg| arg.strip_prefix("-L")).map(Path::new).collect();
    let there = |lib: &str| {
        let found = |ext| folders.iter().any(|f| f.join(format!("lib{lib}.{ext}")).exists());
        !lib.starts_with("rte_") || found("so") || found("a")
    };
    let wanted = |arg: &&str| arg.starts_with("-L") || arg.strip_prefix("-l").is_some_and(there);
    line.split_whitespace().filter(wanted).map(str::to_string).collect()
}
