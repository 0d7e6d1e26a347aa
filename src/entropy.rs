//! The five entropy bits of a flow's label: a keyed hash of its 5-tuple, so that
//! they are the same for the flow's whole life, also across a repeated start and
//! a restart of glowd, yet differ between the flows of one tag (decision 6).

use std::fs;
use std::net::IpAddr;

use crate::flow::FlowId;

/// The key of the hash.
#[derive(Clone, Copy, Debug)]
pub struct EntropyKey([u64; 2]);

impl EntropyKey {
    /// The key of this boot of this host. No flow outlives a boot, so nothing has
    /// to be kept on disk.
    pub fn of_this_boot() -> Self {
        let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let digits: String = id.chars().filter(char::is_ascii_hexdigit).collect();
        let half = |range| digits.get(range).and_then(|half| u64::from_str_radix(half, 16).ok());
        // Where there is no boot id there is no marker either (macOS).
        EntropyKey([half(0..16).unwrap_or(0), half(16..32).unwrap_or(0)])
    }

    /// The key itself, for the program that computes the same in the kernel.
    pub fn halves(self) -> [u64; 2] {
        self.0
    }

    /// 32 bits for that flow; the label uses five of them.
    pub fn entropy(self, id: &FlowId) -> u32 {
        let mut tuple = [0; 37];
        let (src, dst) = (id.src(), id.dst());
        for (at, ip) in [(0, src.ip()), (16, dst.ip())] {
            match ip {
                IpAddr::V4(ip) => tuple[at..at + 4].copy_from_slice(&ip.octets()),
                IpAddr::V6(ip) => tuple[at..at + 16].copy_from_slice(&ip.octets()),
            }
        }
        tuple[32..34].copy_from_slice(&src.port().to_be_bytes());
        tuple[34..36].copy_from_slice(&dst.port().to_be_bytes());
        tuple[36] = id.protocol().number();
        let hash = siphash13(self.0, &tuple);
        #[allow(clippy::cast_possible_truncation)] // folded to 32 bits
        let folded = (hash ^ hash >> 32) as u32;
        folded
    }
}

/// SipHash-1-3 (Aumasson and Bernstein, 2012). Our own because the standard
/// library's hasher does not promise to stay the same from release to release,
/// and an upgrade must not change the label of a live flow.
fn siphash13(key: [u64; 2], data: &[u8]) -> u64 {
    let mut v = [
        key[0] ^ 0x736f_6d65_7073_6575,
        key[1] ^ 0x646f_7261_6e64_6f6d,
        key[0] ^ 0x6c79_6765_6e65_7261,
        key[1] ^ 0x7465_6462_7974_6573,
    ];
    let round = |v: &mut [u64; 4]| {
        v[0] = v[0].wrapping_add(v[1]);
        v[2] = v[2].wrapping_add(v[3]);
        v[1] = v[1].rotate_left(13) ^ v[0];
        v[3] = v[3].rotate_left(16) ^ v[2];
        v[0] = v[0].rotate_left(32);
        v[2] = v[2].wrapping_add(v[1]);
        v[0] = v[0].wrapping_add(v[3]);
        v[1] = v[1].rotate_left(17) ^ v[2];
        v[3] = v[3].rotate_left(21) ^ v[0];
        v[2] = v[2].rotate_left(32);
    };
    let mut words = data.chunks_exact(8);
    for word in &mut words {
        let word = u64::from_le_bytes(word.try_into().expect("chunks of eight"));
        v[3] ^= word;
        round(&mut v);
        v[0] ^= word;
    }
    let mut last = [0; 8];
    last[..words.remainder().len()].copy_from_slice(words.remainder());
    last[7] = u8::try_from(data.len() & 0xff).expect("masked");
    let last = u64::from_le_bytes(last);
    v[3] ^= last;
    round(&mut v);
    v[0] ^= last;
    v[2] ^= 0xff;
    for _ in 0..3 {
        round(&mut v);
    }
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::Protocol;

    /// The standard library's hasher is SipHash-1-3 under the zero key today.
    #[test]
    fn is_siphash_1_3() {
        use std::hash::{DefaultHasher, Hasher};
        for length in 0..64_u8 {
            let data: Vec<u8> = (0..length).collect();
            let mut hasher = DefaultHasher::new();
            hasher.write(&data);
            assert_eq!(siphash13([0, 0], &data), hasher.finish(), "{length} octets");
        }
    }

    #[test]
    fn spreads_over_all_labels_of_a_tag() {
        let key = EntropyKey([1, 2]);
        let mut seen = std::collections::BTreeSet::new();
        for port in 1..1000 {
            let src = std::net::SocketAddr::new("2001:db8::1".parse().unwrap(), port);
            let dst = "[2001:db8::2]:1094".parse().unwrap();
            let id = FlowId::new(Protocol::Tcp, src, dst).unwrap();
            assert_eq!(key.entropy(&id), key.entropy(&id));
            seen.insert(key.entropy(&id) & crate::flow::LABEL_ENTROPY_MASK);
        }
        assert_eq!(seen.len(), 32);
    }
}
