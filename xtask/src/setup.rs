//! What building needs besides a Rust toolchain: a C++ compiler and libclang, both for RocksDB.

use std::{path::Path, process::Command};

use anyhow::bail;

use crate::tools;

/// What is missing, as Debian packages.
fn missing() -> Vec<&'static str> {
    let mut packages = Vec::new();
    if !tools::on_path("c++") && !tools::on_path("g++") {
        packages.push("g++");
    }
    if !has_libclang() {
        packages.push("libclang-dev");
    }
    packages
}

/// Whether a file of this name is the C library that RocksDB's bindings are made with. `libclang-cpp` is another one, which
/// packages bring along that need neither.
fn is_libclang(name: &str) -> bool {
    name.starts_with("libclang") && name.contains(".so") && !name.starts_with("libclang-cpp")
}

fn has_libclang() -> bool {
    if std::env::var_os("LIBCLANG_PATH").is_some() {
        return true;
    }
    let holds = |dir: &Path| {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).any(|name| is_libclang(&name))
    };
    let llvm = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    let mut dirs: Vec<_> = llvm
        .map(|entry| entry.path())
        .filter(|path| path.to_string_lossy().contains("/llvm-"))
        .map(|path| path.join("lib"))
        .collect();
    dirs.extend(["/usr/lib", "/usr/lib64", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu"].map(Into::into));
    dirs.iter().any(|dir| holds(dir))
}

/// Installs what is missing as root; otherwise says what to run.
pub fn run() -> anyhow::Result<()> {
    let packages = missing();
    if packages.is_empty() {
        return Ok(());
    }
    let install = format!("apt-get update && apt-get install -y --no-install-recommends {}", packages.join(" "));
    if !tools::on_path("apt-get") {
        bail!(
            "this machine lacks what the Debian packages {} hold: install the like, then try again",
            packages.join(" and ")
        );
    }
    let root = tools::output(Command::new("id").arg("-u"))?.trim() == "0";
    if !root {
        bail!("building needs {}; run\n\n    sudo sh -c '{install}'\n\nand try again", packages.join(" and "));
    }
    eprintln!("installing {}", packages.join(", "));
    tools::run(Command::new("apt-get").arg("update").arg("-q"))?;
    let mut command = Command::new("apt-get");
    command
        .args(["install", "-y", "-q", "--no-install-recommends"])
        .args(&packages)
        .env("DEBIAN_FRONTEND", "noninteractive");
    tools::run(&mut command)?;
    if missing().is_empty() { Ok(()) } else { bail!("still missing after the installation: {}", missing().join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::is_libclang;

    #[test]
    fn the_cpp_library_does_not_stand_in_for_libclang() {
        assert!(["libclang.so", "libclang.so.1", "libclang-14.so.1", "libclang-19.so.1"].into_iter().all(is_libclang));
        assert!(
            ["libclang-cpp.so.14", "libclang-cpp.so", "libclang.a", "libLLVM-14.so"]
                .into_iter()
                .all(|name| !is_libclang(name))
        );
    }
}
