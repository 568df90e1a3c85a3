//! Commands that need no cluster: certificates, synthetic studies, completion.

use std::io::Write;

use clap::CommandFactory;
use clap_complete::Shell;
use pacsvault_client::dicom::synthetic::{self, Recipe};
use pacsvault_runtime::wall_now;
use pacsvault_security::{Authority, Role, pki::Request};
use serde_json::json;

use super::{
    Context,
    args::{Cli, Pki, Sample},
    failure::Failure,
    output::{counted, size_text},
};

/// Certificates.
pub fn pki(context: &Context, command: Pki) -> Result<(), Failure> {
    match command {
        Pki::Init { dir } => {
            let authority = Authority::create(&dir, wall_now())?;
            let (cluster, shown) = (authority.cluster().to_string(), dir.display());
            let value = json!({"cluster": cluster, "ca": dir.join("ca.pem"), "ca_key": dir.join("ca.key")});
            context.out.either(&value, || {
                format!(
                    "cluster {cluster}\n  {shown}/ca.pem  give it to everybody\n  {shown}/ca.key  keep it here: it makes members\n\n\
                     next, one certificate each:\n  \
                     pacsvault pki issue {shown} --role node NAME --host ADDRESS   for every node\n  \
                     pacsvault pki issue {shown} --role operator NAME              to make the cluster and look after it\n  \
                     pacsvault pki issue {shown} --role gateway NAME               to write and read studies"
                )
            });
        }
        Pki::Issue { dir, role, name, hosts, days } => {
            let authority = Authority::open(&dir)?;
            let request = Request { role, name: &name, hosts: &hosts, now: wall_now(), days };
            let files = authority.issue(&dir, &request)?;
            let value = json!({
                "role": role.as_str(), "name": name, "cluster": authority.cluster().to_string(), "days": days,
                "cert": files.certificate, "key": files.key,
            });
            context.out.either(&value, || {
                let (cert, key) = (files.certificate.display(), files.key.display());
                let next = match role {
                    Role::Node => {
                        format!("give ca.pem and these two files to node {name}, then start pacsvault-node there")
                    }
                    Role::Gateway | Role::Operator | Role::Auditor => {
                        format!("use it: pacsvault --ca {}/ca.pem --cert {cert} --key {key} ...", dir.display())
                    }
                };
                format!("{role} {name}, valid {days} days\n  {cert}\n  {key}\n{next}")
            });
        }
    }
    Ok(())
}

/// A synthetic study.
pub fn sample(context: &Context, args: Sample) -> Result<(), Failure> {
    if args.slices == 0 && args.frames == 0 {
        return Err(Failure::usage("nothing to make: give --slices or --frames"));
    }
    let recipe = Recipe { seed: args.seed, slices: args.slices, frames: args.frames };
    let bar = context.out.bytes_bar(u64::from(args.slices + args.frames) * (512 << 10));
    let mut bytes = 0;
    let paths = synthetic::write_study(&args.dir, recipe, |written| {
        bytes += written;
        bar.inc(written);
    });
    bar.finish_and_clear();
    let paths = paths.map_err(|error| Failure::failed("PV-FILE", format!("cannot write the study: {error:#}")))?;
    let study = synthetic::study_uid(recipe);
    let value = json!({"study": study, "files": paths.len(), "bytes": bytes, "dir": args.dir});
    context.out.either(&value, || {
        format!(
            "study {study}: {}, {} in {}\nnext: pacsvault put {2}",
            counted(paths.len(), "file"),
            size_text(bytes),
            args.dir.display()
        )
    });
    Ok(())
}

/// A completion script.
pub fn completion(shell: Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "pacsvault", &mut script);
    let mut stdout = std::io::stdout().lock();
    stdout
        .write_all(&script)
        .and_then(|()| stdout.flush())
        .map_err(|error| Failure::failed("PV-FILE", format!("cannot write the script to standard output: {error}")))
}
