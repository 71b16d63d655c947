//! Planted bugs, to prove that the tests see such bugs. Without the feature `canaries` nothing of
//! this is compiled in: [`planted`] is a constant `false`.
//!
//! ```text
//!  plant(Some(canary)) ─▶ this thread's engines ask planted(canary) where the bug would be
//! ```

/// Expands to the enum, the list of all and their sentences.
macro_rules! canaries {
    ($($name:ident: $text:literal,)*) => {
        /// One planted bug.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Canary {
            $(#[doc = $text] $name,)*
        }

        #[cfg(feature = "canaries")]
        impl Canary {
            /// All of them.
            pub const ALL: &[Canary] = &[$(Canary::$name,)*];

            /// What is wrong, in a few words.
            pub fn text(self) -> &'static str {
                match self {
                    $(Canary::$name => $text,)*
                }
            }
        }
    };
}

canaries! {
    CommitBeforeData: "the superblock is written before what it commits has been flushed",
    CommitUnflushed: "a consistency point counts before its superblock has been flushed",
    FlushAtOnce: "a flush is answered without a base flush",
    FlushOnOld: "a flush is answered by a base flush that began before it",
    FlushCoversMore: "a flush is noted as covering journal blocks written after it began",
    FlushFailureForgotten: "a failed flush is reported once, and then forgotten",
    FuaForgotten: "a FUA write is answered without a flush",
    AckBeforeRecord: "a write is answered before its journal block is written",
    EffectOutOfOrder: "a journal block takes effect before an older one is written",
    RecordBeforeData: "a record says that its data was durable when it was not",
    DataUnchecked: "recovery believes records without comparing their data",
    ReplayReversed: "recovery applies the records backwards",
    ReplayTwice: "recovery replays blocks of the journal before the last recovery",
    ReplayTorn: "recovery replays journal blocks whose checksum does not match",
    RecoveryUnsettled: "recovery writes before what it has read is durable",
    TailTooFar: "a consistency point trims records that came after its freeze",
    TrimBeforeCommit: "the journal is trimmed when a consistency point begins",
    DiscardUnlogged: "a discard is answered without a record",
    PairUncommitted: "the newer copy of a pair counts even if it was never committed",
    PairOld: "an older copy of a pair counts if the newer one is gone",
    HoleIgnored: "a promised journal block that is lost ends the replay, as if never written",
    PairStale: "a copy that was never committed is left to come alive later",
    FreedTooEarly: "freed blocks are given out before the consistency point commits",
    FreedUnderRead: "freed blocks are given out while old reads are on them",
    StaleNode: "an older node of the same place passes for the newer one",
    NodeUnmarked: "the block of a map node is not entered as used",
    SharedOverwritten: "a block that a snapshot shares is overwritten in place",
    MarkForgotten: "a copied leaf does not mark its links as shared",
    UnsealedOverwritten: "a block whose record is still to be checked is overwritten in place",
    TornOverwrite: "a block is overwritten in place on a base that tears",
    FrozenLeafChanged: "a leaf changes while a consistency point is still to write it",
    DrainForgotten: "a snapshot is cloned while older in-place writes are in flight",
    BusyForgotten: "two writes to one block are not ordered",
    UndecidedLost: "a block that an older version may hold is forgotten when dropped",
    SharedFreed: "deleting a snapshot frees what its neighbours still hold",
    OlderIgnored: "what the live disk drops is freed although an older snapshot has it",
    CursorLost: "the reaper starts again from the beginning after a restart",
    CloneUncounted: "clones are not counted after a restart",
    TrimForgotten: "a shrink leaves behind what it cuts off",
    OldBytes: "a partial write to a hole leaves old memory around it",
    StarvedSkipped: "a consistency point goes on although metadata found no space",
    StarvedForgotten: "metadata that found no space is not tried again",
    CompactKept: "the compact copy of a leaf is kept when the leaf is changed",
    PiecesKept: "pieces of a leaf are kept when the leaf is changed",
    CompactPurgeForgotten: "compact copies of a deleted disk's leaves are kept",
    WriteErrorIgnored: "a write whose data could not be written succeeds",
}

#[cfg(feature = "canaries")]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Canary>> = const { std::cell::Cell::new(None) };
}

/// Plants a bug in all engines of this thread, or takes it away.
#[cfg(feature = "canaries")]
pub fn plant(canary: Option<Canary>) {
    PLANTED.set(canary);
}

/// True if this very bug is planted.
#[cfg(feature = "canaries")]
pub(crate) fn planted(canary: Canary) -> bool {
    PLANTED.get() == Some(canary)
}

/// No bug is planted.
#[cfg(not(feature = "canaries"))]
#[inline(always)]
pub(crate) const fn planted(_: Canary) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(not(feature = "canaries"))]
    #[test]
    fn without_the_feature_nothing_can_be_planted() {
        const PLANTED: bool = planted(Canary::CommitBeforeData);
        const { assert!(!PLANTED) };
    }

    #[cfg(feature = "canaries")]
    #[test]
    fn one_bug_is_planted_at_a_time() {
        for canary in Canary::ALL {
            plant(Some(*canary));
            assert_eq!(Canary::ALL.iter().filter(|c| planted(**c)).count(), 1);
        }
        plant(None);
        assert!(!Canary::ALL.iter().any(|c| planted(*c)));
    }
}
