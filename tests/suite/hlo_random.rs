//! The random bits of the graph against the published generator.

use crate::common::graph::Compiled;
use bert_xla::hlo::{Graph, Program};
use bert_xla::shape::{ElementType, Shape};
use ndarray::Array1;

/// Philox4x32-10 as published: one block of four words from a counter and a key.
fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let [a, b] = [(0xd251_1f53, counter[0]), (0xcd9e_8d57, counter[2])].map(|(m, c)| u64::from(c) * m);
        counter = [
            (b >> 32) as u32 ^ counter[1] ^ key[0],
            b as u32,
            (a >> 32) as u32 ^ counter[3] ^ key[1],
            a as u32,
        ];
        key = [key[0].wrapping_add(0x9e37_79b9), key[1].wrapping_add(0xbb67_ae85)];
    }
    counter
}

#[test]
fn philox_reference_gives_the_published_vectors() {
    assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
    assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
    let pi = philox([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]);
    assert_eq!(pi, [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
}

#[test]
fn random_bits_are_a_function_of_the_state() {
    let graph = Graph::new();
    let state = graph.parameter("state", Shape::new(ElementType::U64, [2]));
    let program = Program::new("bits", vec![state], vec![state.random_bits(&[32, 128])]);
    let compiled = Compiled::new(&program, 1);
    let bits = |state: [u64; 2]| compiled.run(&[(&*Array1::from(state.to_vec())).into()])[0].to::<u32>();
    let (key, counter) = (0x0123_4567_89ab_cdef_u64, 42);
    let first = bits([key, counter]);
    assert_eq!(first, bits([key, counter]), "the same state");
    for other in [[key + 1, counter], [key ^ (1 << 63), counter], [key, counter + 5000]] {
        let agreeing = first.iter().zip(&bits(other)).filter(|(a, b)| a == b).count();
        assert!(agreeing <= 1, "{agreeing} of 4096 words are those of another state");
    }
    let ones = first.iter().map(|word| word.count_ones()).sum::<u32>();
    let (count, sigma) = (32.0 * 4096.0, (32.0f64 * 4096.0 / 4.0).sqrt());
    assert!((f64::from(ones) - count / 2.0).abs() < 4.0 * sigma, "{ones} ones of {count}");
    // XLA's convention for a state of two words: the first is the key, and the high half of the counter too.
    let halves = |word: u64| [word as u32, (word >> 32) as u32];
    let blocks = (0..1024).flat_map(|block| {
        let ([low, high], key) = (halves(counter + block), halves(key));
        philox([low, high, key[0], key[1]], key)
    });
    assert!(first.iter().copied().eq(blocks), "not the bits of Philox4x32-10");
}
