//! The configured key (`SAN_KEY`), and the key of one excursion to a queue pair that is made of it.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use hmac::{Hmac, KeyInit, Mac as _};
use san_stream::{Mac, TAG};
use sha2::Sha256;

type HmacSha256 = Hmac<Sha256>;

/// The longest key file in bytes.
const MOST_KEY: u64 = 4096;

/// What all hosts of a deployment share, or nothing. It is never shown.
///
/// ```
/// use san_switch::DeploymentKey;
///
/// let key = DeploymentKey::new(b"of this deployment");
/// assert_eq!(format!("{key:?}"), "(a key)");
/// assert!(!DeploymentKey::default().is_set());
/// ```
#[derive(Clone, PartialEq, Eq, Default)]
pub struct DeploymentKey {
    bytes: Vec<u8>,
}

impl DeploymentKey {
    /// A key of these bytes; none: proofs show only that both ends hold the same TCP connection.
    #[must_use]
    pub fn new(key: &[u8]) -> Self {
        Self {
            bytes: key.to_vec(),
        }
    }

    /// A key as hexadecimal digits: two for each of 16 to 256 bytes.
    pub(crate) fn from_hex(digits: &str) -> Option<Self> {
        if !digits.is_ascii()
            || !(32..=512).contains(&digits.len())
            || !digits.len().is_multiple_of(2)
        {
            return None;
        }
        let byte = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).ok();
        let is_hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        let bytes = (0..digits.len())
            .step_by(2)
            .map(byte)
            .collect::<Option<_>>()?;
        is_hex.then_some(Self { bytes })
    }

    /// The key in a file, without the line end. Only its owner may read the file, and the owner is
    /// this user or root: a key that others can read proves nothing.
    ///
    /// # Errors
    /// What the system says; `PermissionDenied` for a file that others may read or that is
    /// another user's, `InvalidData` for one that is empty, too long or no file.
    pub fn from_file(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        let invalid = |what| Err(io::Error::new(io::ErrorKind::InvalidData, what));
        if !metadata.is_file() {
            return invalid("it is no regular file");
        }
        let own = rustix::process::geteuid().as_raw();
        if metadata.mode() & 0o077 != 0 || ![own, 0].contains(&metadata.uid()) {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "only its owner may have rights on it (chmod 600), and that is you or root",
            ));
        }
        let mut key = Vec::new();
        file.take(MOST_KEY + 1).read_to_end(&mut key)?;
        while key.last().is_some_and(|byte| b"\r\n".contains(byte)) {
            key.pop();
        }
        match key.len() as u64 {
            0 => invalid("it is empty"),
            1..=MOST_KEY => Ok(Self::new(&key)),
            _ => invalid("a key has 4096 bytes at most"),
        }
    }

    /// Whether there is a key.
    #[must_use]
    pub fn is_set(&self) -> bool {
        !self.bytes.is_empty()
    }

    /// Begins a code under this key.
    pub(super) fn begin(&self) -> HmacSha256 {
        HmacSha256::new_from_slice(&self.bytes).expect("HMAC takes keys of any length")
    }
}

impl fmt::Debug for DeploymentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_set() { "(a key)" } else { "(no key)" })
    }
}

/// The key of one excursion: of the deployment's key and the nonces of both ends.
#[derive(Clone)]
pub(crate) struct ExcursionKey {
    hmac: HmacSha256,
}

impl ExcursionKey {
    pub(super) fn new(key: &DeploymentKey, acceptor_nonce: u64, connector_nonce: u64) -> Self {
        let mut hmac = key.begin();
        hmac.update(b"excursion");
        hmac.update(&acceptor_nonce.to_be_bytes());
        hmac.update(&connector_nonce.to_be_bytes());
        let key = hmac.finalize().into_bytes();
        let hmac = HmacSha256::new_from_slice(&key).expect("HMAC takes keys of any length");
        Self { hmac }
    }
}

impl Mac for ExcursionKey {
    fn mac(&self, bytes: &[u8]) -> [u8; TAG] {
        let mut hmac = self.hmac.clone();
        hmac.update(bytes);
        let code = hmac.finalize().into_bytes();
        std::array::from_fn(|at| code[at])
    }
}

impl fmt::Debug for ExcursionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(a key)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn each_excursion_and_each_deployment_has_a_key_of_its_own() {
        let (one, other) = (DeploymentKey::new(b"one"), DeploymentKey::new(b"other"));
        let code = |key, a, b| ExcursionKey::new(key, a, b).mac(b"slot");
        assert_eq!(code(&one, 1, 2), code(&one, 1, 2));
        assert_ne!(code(&one, 1, 2), code(&one, 2, 1));
        assert_ne!(code(&one, 1, 2), code(&other, 1, 2));
        assert_ne!(code(&one, 1, 2), code(&DeploymentKey::default(), 1, 2));
    }

    #[test]
    fn a_key_is_never_shown() {
        let key = DeploymentKey::new(b"secret");
        let shown = format!("{key:?} {:?}", ExcursionKey::new(&key, 1, 2));
        assert_eq!(shown, "(a key) (a key)");
        assert_eq!(format!("{:?}", DeploymentKey::default()), "(no key)");
    }

    #[test]
    fn a_key_file_is_its_owners_alone() {
        let path = std::env::temp_dir().join(format!("san-key-{}", std::process::id()));
        let write = |bytes: &[u8], mode| {
            fs::write(&path, bytes).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            DeploymentKey::from_file(&path)
        };
        let read = write(b"secret\r\n", 0o600).unwrap();
        let same = DeploymentKey::new(b"secret");
        let code = |key| ExcursionKey::new(key, 1, 2).mac(b"");
        assert_eq!(code(&read), code(&same));
        assert!(read.is_set());

        for mode in [0o640, 0o604] {
            let error = write(b"secret", mode).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        }
        for bytes in [&b""[..], b"\n", &[7; 4097]] {
            let error = write(bytes, 0o600).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
        fs::remove_file(&path).unwrap();
        let gone = DeploymentKey::from_file(&path).unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::NotFound);
        let folder = DeploymentKey::from_file(&std::env::temp_dir()).unwrap_err();
        assert_eq!(folder.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn digits_are_a_key_when_there_are_enough_of_them() {
        let key = DeploymentKey::from_hex("000102030405060708090a0b0c0d0eFF").unwrap();
        assert_eq!((key.bytes[1], key.bytes[15]), (1, 255));
        let long = "ab".repeat(257);
        for wrong in [
            "",
            "0001",
            "+0010203040506070809+a0b0c0d0e0f",
            &long,
            &"é".repeat(16),
        ] {
            assert!(DeploymentKey::from_hex(wrong).is_none(), "{wrong}");
        }
    }
}
