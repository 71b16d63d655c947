//! Damage to map nodes.

use super::case::{Case, FAMILY, G, S, SOLO, V1, W, past_end, serves};
use super::{NODE, put, put32};
use lamina_bdev::check::FindingKind::{Leak, Node, NotAllocated, Shared};

pub const NODES: &[Case] = &[
    serves("root: rotten", SOLO, Node, "disk solo", |s| {
        let [root, ..] = s.path(S);
        s.rot(root, |b| b[10] ^= 1);
    }),
    serves("inner node: rotten", SOLO, Node, "disk solo", |s| {
        let [_, inner, _] = s.path(S);
        s.rot(inner, |b| b[10] ^= 1);
    }),
    serves("leaf: rotten", SOLO, Node, "disk solo", |s| {
        let [.., leaf] = s.path(S);
        s.rot(leaf, |b| b[10] ^= 1);
    }),
    serves("node: a link past the end", SOLO, Node, "out of bounds", |s| {
        let ([_, inner, _], past) = (s.path(S), past_end(s));
        s.set_link(inner, 7, past);
    }),
    serves("node: a link to the superblock", SOLO, Node, "out of bounds", |s| {
        let [_, inner, _] = s.path(S);
        s.set_link(inner, 7, 1);
    }),
    serves("leaf: a link into the journal", SOLO, Node, "out of bounds", |s| {
        let ([.., leaf], journal) = (s.path(S), s.sb(104));
        s.set_link(leaf, 7, journal);
    }),
    serves("leaf: a link to a bitmap", SOLO, Node, "out of bounds", |s| {
        let ([.., leaf], bitmap) = (s.path(S), s.sb(120) + 1);
        s.set_link(leaf, 7, bitmap);
    }),
    serves("leaf: a link marked lost", SOLO, Leak, "held by nothing", |s| {
        let [.., leaf] = s.path(S);
        s.set_link(leaf, 7, (1 << 47) - 1);
    }),
    serves("node: a link from the future", SOLO, Node, "future", |s| {
        let ([_, inner, leaf], stamp) = (s.path(S), s.sb(48) + 1);
        s.set_link_stamped(inner, 0, leaf, stamp);
    }),
    serves("node: a cycle to the root", SOLO, Shared, "disk solo", |s| {
        let [root, inner, _] = s.path(S);
        s.set_link(inner, 0, root);
    }),
    serves("node: a cycle to itself", SOLO, Shared, "disk solo", |s| {
        let [_, inner, _] = s.path(S);
        s.set_link(inner, 0, inner);
    }),
    serves("node: a child at the wrong depth", SOLO, Node, "disk solo", |s| {
        let [root, _, leaf] = s.path(S);
        s.set_link(root, 0, leaf);
    }),
    serves("node: two parents", SOLO, Shared, "disk solo", |s| {
        let [_, inner, leaf] = s.path(S);
        s.set_link(inner, 1, leaf);
    }),
    serves("node: a child of another disk", SOLO, Shared, "disk solo", |s| {
        let ([_, inner, _], [.., other]) = (s.path(S), s.path(W));
        s.set_link(inner, 0, other);
    }),
    serves("node: a clone into its origin's private tree", &["vm1"], Shared, "disk vm1", |s| {
        let ([_, inner, _], [.., other]) = (s.path(V1), s.path(G));
        s.set_link(inner, 0, other);
    }),
    serves("leaf: a data block of another disk", SOLO, Shared, "at block", |s| {
        let ([.., leaf], [.., other]) = (s.path(S), s.path(W));
        let data = s.child(other, 3);
        s.set_link(leaf, 3, data);
    }),
    serves("leaf: one data block twice", SOLO, Shared, "at block", |s| {
        let [.., leaf] = s.path(S);
        let data = s.child(leaf, 3);
        s.set_link(leaf, 9, data);
    }),
    serves("leaf: a data block that is a node", SOLO, Shared, "metadata", |s| {
        let [root, _, leaf] = s.path(S);
        s.set_link(leaf, 9, root);
    }),
    serves("leaf: a data block that is another disk's node", SOLO, Shared, "data block", |s| {
        let ([.., leaf], [other, ..]) = (s.path(S), s.path(W));
        s.set_link(leaf, 9, other);
    }),
    serves("leaf: a data block that is a snapshot log", SOLO, Shared, "metadata", |s| {
        let ([.., leaf], log) = (s.path(S), s.u64_at(s.record(G), 200));
        s.set_link(leaf, 9, log);
    }),
    serves("leaf: a data block that is free", SOLO, NotAllocated, "free in its bitmap", |s| {
        let [.., leaf] = s.path(S);
        let free = s.free_block(s.root(W));
        s.set_link(leaf, 9, free);
    }),
    serves("node: of a snapshot log", SOLO, Shared, "snapshot log", |s| {
        let ([_, inner, _], log) = (s.path(S), s.u64_at(s.record(S), 200));
        s.set_link(inner, 0, log);
    }),
    serves("node: of another index", SOLO, Node, "disk solo", |s| {
        let [_, _, leaf] = s.path(S);
        s.edit(leaf, NODE, |b| put(b, NODE + 40, 5));
    }),
    serves("node: of another level", SOLO, Node, "disk solo", |s| {
        let [_, _, leaf] = s.path(S);
        s.edit(leaf, NODE, |b| b[NODE + 5] = 1);
    }),
    serves("node: of another address", SOLO, Node, "misdirected", |s| {
        let [_, _, leaf] = s.path(S);
        s.edit(leaf, NODE, |b| put(b, NODE + 32, 12345));
    }),
    serves("node: of another store", SOLO, Node, "another store", |s| {
        let [_, _, leaf] = s.path(S);
        s.edit(leaf, NODE, |b| b[NODE + 16] ^= 1);
    }),
    serves("node: of another owner", SOLO, Shared, "disk solo", |s| {
        let [_, _, leaf] = s.path(S);
        s.edit(leaf, NODE, |b| put32(b, NODE + 12, W as u32));
    }),
    serves("node: generation from the future", SOLO, Node, "consistency point", |s| {
        let [_, _, leaf] = s.path(S);
        s.edit(leaf, NODE, |b| put(b, NODE + 48, 1 << 50));
    }),
    serves("node: born in the future", SOLO, Shared, "disk solo", |s| {
        let [_, _, leaf] = s.path(S);
        s.edit(leaf, NODE, |b| put(b, NODE + 64, 1 << 50));
    }),
    serves("leaf: stale", SOLO, Node, "lost", |s| {
        let [.., leaf] = s.path(S);
        s.make_stale(leaf, 1, 3);
    }),
    serves("leaf: stale, shared by clones", FAMILY, Node, "lost", |s| {
        let root = s.snapshot_root(G, 1);
        let leaf = s.child(s.child(root, 1), 0);
        s.make_stale(leaf, 1, 3);
    }),
    serves("inner node: stale", SOLO, Node, "lost", |s| {
        let [_, inner, _] = s.path(S);
        s.make_stale(inner, 1, 0);
    }),
    serves("root: stale", SOLO, Node, "lost", |s| {
        let [root, ..] = s.path(S);
        s.make_stale(root, 1, 0);
    }),
    serves("root: stale, of a snapshot", SOLO, Node, "lost", |s| {
        let root = s.snapshot_root(S, 1);
        s.make_stale(root, 1, 0);
    }),
    serves("node: torn at 512", SOLO, Node, "torn", |s| {
        let [_, _, leaf] = s.path(S);
        s.rot(leaf, |b| b[512..1024].fill(0xa5));
    }),
    serves("node: zeroed", SOLO, Node, "disk solo", |s| {
        let [_, _, leaf] = s.path(S);
        s.rot(leaf, |b| b.fill(0));
    }),
];
