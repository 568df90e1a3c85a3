//! What others bring: a client in another language that knows only gRPC, and OpenSSL, which knows nothing of us. Health,
//! reflection and reading work for the one, mutual TLS and receipts hold before the other.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::Context;
use pacsvault_client::Source;
use pacsvault_coordinator::PutHeader;
use pacsvault_core::ids::ObjectKey;
use pacsvault_harness::output;
use pacsvault_security::SignedReceipt;
use pacsvault_tests::{Bed, ledger::Content, refusal::says, skip};

const TMP: &str = env!("CARGO_TARGET_TMPDIR");
const PACKAGES: [&str; 4] = ["grpcio==1.*", "grpcio-reflection==1.*", "grpcio-health-checking==1.*", "setuptools"];

fn stored(bed: &Bed, size: usize) -> anyhow::Result<(ObjectKey, Content, Vec<u8>)> {
    let key: ObjectKey = "main/1.2.826.0.8/1.2.826.0.8.1/1.2.826.0.8.1.1".parse()?;
    let (content, bytes) = Content::draw(8, size);
    let (header, source) = (PutHeader::new(key.clone(), "application/dicom"), Source::Bytes(bytes));
    let client = bed.client(false)?;
    let acked = bed.runtime.block_on(client.put(header, &source, &|_| {}))?;
    Ok((key, content, acked.signed))
}

/// A Python with gRPC, kept beside the build's other products; an error says what is missing.
fn python() -> anyhow::Result<PathBuf> {
    let dir = Path::new(TMP).join("python-grpc");
    let python = dir.join("bin/python");
    let ready = dir.join("ready");
    if !ready.exists() {
        output(Command::new("python3").args(["-m", "venv"]).arg(&dir))?;
        output(
            Command::new(&python)
                .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
                .args(PACKAGES),
        )?;
        fs::write(ready, "")?;
    }
    Ok(python)
}

#[test]
fn a_client_in_another_language_finds_and_reads_a_study() -> anyhow::Result<()> {
    Bed::running(TMP, 3, 1)?.run(|bed| {
        let python = match python() {
            Ok(python) => python,
            Err(error) => {
                skip("the client in Python", &format!("{error:#}"));
                return Ok(());
            }
        };
        let (key, content, _) = stored(bed, 20 << 20)?;
        let (pki, read) = (bed.pki(), bed.cluster.dir.join("read"));
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tools/client.py");
        let mut command = Command::new(python);
        command.arg(script).arg(&bed.cluster.nodes[2].address);
        command.args([pki.join("ca.pem"), pki.join("operator-admin.pem"), pki.join("operator-admin.key")]);
        let text = output(command.args(key.to_string().split('/')).arg(&read))?;
        eprint!("{text}");
        says(&text, &["health SERVING", "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection", "listed 1"])?;
        says(&text, &["pacsvault.v1.Archive", "pacsvault.v1.Admin", "announced 20971520"])?;
        says(&text, &["missing NOT_FOUND", "1.2.3.404 is not stored"])?;
        anyhow::ensure!(fs::read(&read)? == content.bytes(), "other bytes were read");
        Ok(())
    })
}

#[test]
fn openssl_sees_tls_1_3_and_is_refused_without_a_certificate() -> anyhow::Result<()> {
    if Command::new("openssl").arg("version").output().is_err() {
        skip("TLS as OpenSSL sees it", "install openssl");
        return Ok(());
    }
    Bed::running(TMP, 1, 1)?.run(|bed| {
        let (pki, address) = (bed.pki(), bed.cluster.nodes[0].address.clone());
        let connect = |arguments: &[&str]| -> anyhow::Result<(bool, String)> {
            let mut command = Command::new("openssl");
            command.args(["s_client", "-connect", &address, "-alpn", "h2", "-CAfile"]).arg(pki.join("ca.pem"));
            command.args(["-verify_return_error", "-ign_eof"]).args(arguments);
            // The client's HTTP/2 greeting; the node answers with its settings, or with a TLS alert. GOAWAY ends both.
            let greeting =
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\0";
            let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
            // A handshake that failed closes the pipe; that is an answer too.
            let _ = std::io::Write::write_all(&mut child.stdin.take().context("a pipe")?, greeting);
            let output = child.wait_with_output()?;
            let text = [output.stdout, output.stderr].concat();
            Ok((output.status.success(), String::from_utf8_lossy(&text).into_owned()))
        };
        let (certificate, key) = (pki.join("gateway-demo.pem"), pki.join("gateway-demo.key"));
        let (certificate, key) = (certificate.to_string_lossy(), key.to_string_lossy());
        let (fine, text) = connect(&["-cert", &certificate, "-key", &key])?;
        says(&text, &["TLSv1.3", "Verify return code: 0 (ok)", "ALPN protocol: h2"])?;
        anyhow::ensure!(fine, "{text}");
        let (_, text) = connect(&[])?;
        says(&text, &["certificate required"])?;
        let (fine, text) = connect(&["-tls1_2", "-cert", &certificate, "-key", &key])?;
        anyhow::ensure!(!fine, "TLS 1.2 was accepted: {text}");
        says(&text, &["protocol version"])
    })
}

#[test]
fn openssl_verifies_a_receipt_and_refuses_an_altered_one() -> anyhow::Result<()> {
    if Command::new("openssl").arg("version").output().is_err() {
        skip("receipts before OpenSSL", "install openssl");
        return Ok(());
    }
    Bed::running(TMP, 3, 1)?.run(|bed| {
        let (_, _, signed) = stored(bed, 100_000)?;
        let receipt = SignedReceipt::decode(&signed)?;
        let dir = bed.cluster.dir.clone();
        let file = |name: &str| dir.join(name);
        fs::write(file("signer.der"), &receipt.chain[0])?;
        fs::write(file("signature"), &receipt.signature)?;
        fs::write(file("signed"), [b"pacsvault receipt v1\0".as_slice(), &receipt.payload].concat())?;
        let openssl = |arguments: &[&str]| output(Command::new("openssl").args(arguments).current_dir(&dir));
        openssl(&["x509", "-inform", "DER", "-in", "signer.der", "-out", "signer.pem"])?;
        says(&openssl(&["verify", "-CAfile", "pki/ca.pem", "signer.pem"])?, &["signer.pem: OK"])?;
        fs::write(file("signer.pub"), openssl(&["x509", "-in", "signer.pem", "-noout", "-pubkey"])?)?;
        let verify = ["dgst", "-sha256", "-verify", "signer.pub", "-signature", "signature", "signed"];
        says(&openssl(&verify)?, &["Verified OK"])?;
        let mut altered = fs::read(file("signed"))?;
        let last = altered.len() - 1;
        altered[last] ^= 1;
        fs::write(file("signed"), altered)?;
        anyhow::ensure!(openssl(&verify).is_err(), "an altered receipt was verified");
        Ok(())
    })
}
