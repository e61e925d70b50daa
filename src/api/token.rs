//! Secrets for callers over TCP.

use std::fmt::Write;

use rand::{
    TryRng,
    rngs::{SysError, SysRng},
};
use sha2::{Digest, Sha256};

/// 256 bits from the operating system, as text, and the SHA-256 of that text in hexadecimal: the
/// secret is for the caller, the digest for the policy file.
///
/// # Errors
/// When the operating system gives no random bytes.
pub fn new_token() -> Result<(String, String), SysError> {
    let mut bytes = [0; 32];
    SysRng.try_fill_bytes(&mut bytes)?;
    let secret = format!("vervet_{}", hex(&bytes));
    let digest = hex(&Sha256::digest(secret.as_bytes()));
    Ok((secret, digest))
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_differ_and_their_digest_is_that_of_the_text() {
        let (one, digest) = new_token().unwrap();
        let (other, _) = new_token().unwrap();
        assert_ne!(one, other);
        assert_eq!(one.len(), "vervet_".len() + 64);
        assert_eq!(digest, hex(&Sha256::digest(&one)));
    }
}
