//! Maps by flow: the standard library's, with a hash of a few instructions, so that the processor
//! can look up several flows at a time. Pure, but for the seed.
//!
//! The other end of a connection chooses its address and port, so the seed is random: who does
//! not know it cannot choose flows that collide. Nothing that the hash says leaves the program.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};

use crate::flow::FlowId;

/// A map by flow.
pub type FlowMap<T> = HashMap<FlowId, T, Seed>;

/// The seed of a map's hash.
#[derive(Clone, Debug)]
pub struct Seed {
    start: u64,
    factor: u64,
}

impl Default for Seed {
    fn default() -> Self {
        // Of the system's randomness, another one each time.
        let random = RandomState::new();
        // A factor of zero would make all hashes one; an even one loses bits.
        Seed { start: random.hash_one(0), factor: random.hash_one(1) | 1 }
    }
}

impl BuildHasher for Seed {
    type Hasher = Folded;

    fn build_hasher(&self) -> Folded {
        Folded { state: self.start, factor: self.factor }
    }
}

/// Multiplies by a secret and adds the upper half of the product to the lower, for each word.
#[derive(Debug)]
pub struct Folded {
    state: u64,
    factor: u64,
}

impl Folded {
    fn fold(&self, word: u64) -> u64 {
        let product = u128::from(self.state ^ word) * u128::from(self.factor);
        #[allow(clippy::cast_possible_truncation)] // the two halves
        let (low, high) = (product as u64, (product >> 64) as u64);
        low ^ high
    }
}

impl Hasher for Folded {
    fn write_u64(&mut self, word: u64) {
        self.state = self.fold(word);
    }

    fn write(&mut self, bytes: &[u8]) {
        let mut words = bytes.chunks_exact(8);
        for word in words.by_ref() {
            // A length that is known is not looked at.
            self.write_u64(word.try_into().map_or(0, u64::from_ne_bytes));
        }
        let rest = words.remainder();
        if !rest.is_empty() {
            let mut word = [0; 8];
            word[..rest.len()].copy_from_slice(rest);
            self.write_u64(u64::from_ne_bytes(word));
        }
    }

    /// Once more: one product of numbers in a row, as ports are, is a row itself.
    fn finish(&self) -> u64 {
        self.fold(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::Protocol;
    use std::collections::BTreeMap;
    use std::net::SocketAddr;

    /// As a map uses it: the lower bits choose the place, the upper seven tell those there apart.
    #[test]
    fn flows_that_differ_in_any_part_spread() {
        let end = |ip: u128, port| SocketAddr::new(std::net::Ipv6Addr::from(ip).into(), port);
        let of = |protocol, src, dst| FlowId::new(protocol, src, dst).unwrap();
        let (here, there) = (end(1, 1), end(2, 2));
        let mut kinds: Vec<Vec<FlowId>> = Vec::new();
        kinds.push((1..=8192).map(|p| of(Protocol::Tcp, end(1, p), there)).collect());
        kinds.push((1..8192).map(|p| of(Protocol::Udp, here, end(2, p << 3))).collect());
        kinds.push((0..8192).map(|n| of(Protocol::Tcp, here, end(n << 113, 1))).collect());
        kinds.push((0..8192).map(|n| of(Protocol::Tcp, end(n << 51, 1), there)).collect());
        for flows in kinds {
            let seed = Seed::default();
            let hashes: Vec<u64> = flows.iter().map(|flow| seed.hash_one(flow)).collect();
            for part in [|hash| hash & 0x1fff, |hash: u64| hash >> 51] {
                let mut places = BTreeMap::new();
                hashes.iter().for_each(|hash| *places.entry(part(*hash)).or_insert(0) += 1);
                // Thrown at random, 8192 balls find 63 % of as many places, and no place has 12.
                assert!(places.len() > 4000, "{} places", places.len());
                assert!(places.values().all(|count| *count < 20));
            }
            let other = Seed::default();
            assert!(flows.iter().zip(&hashes).all(|(flow, hash)| other.hash_one(flow) != *hash));
        }
    }

    #[test]
    fn equal_flows_are_one_key() {
        let mapped: SocketAddr = "[::ffff:192.0.2.1]:5".parse().unwrap();
        let plain: SocketAddr = "192.0.2.1:5".parse().unwrap();
        let of = |end| FlowId::new(Protocol::Tcp, end, end).unwrap();
        let mut map = FlowMap::default();
        map.insert(of(mapped), 1);
        assert_eq!(map.insert(of(plain), 2), Some(1));
    }
}
