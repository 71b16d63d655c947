//! One look at the rings of a shard: whose requests are taken, and when their guests are told.
//!
//! ```text
//!  queue a ─► queue b ─► queue c, which is crowded ─► queue d ─►
//!          bytes moved, a and b told ┘            all moved, c and d told ┘
//! ```
//!
//! Copies are best left to overlap the requests that follow ([`super::feed`]), whoever's they are:
//! told one by one, 32 guests with a request each get a tenth less. But one who has a request or
//! two should not wait for the part of a neighbour who always has more: beside a flush storm that
//! was a quarter of the time that a read takes.

use crate::vhost::{BlkExport, Submit, Took};

/// Takes up to `batch` chains from each queue of these exports, and tells the guests of what was
/// done at once; how many were taken. Nothing is told before its bytes have been moved.
pub fn look<E: AsMut<BlkExport>>(
    exports: &mut [Option<E>],
    engine: &mut impl Submit,
    batch: usize,
) -> Took {
    let mut all = Took::default();
    // The first export that has something to be told of.
    let mut untold = None;
    for at in 0..exports.len() {
        let mut place = 0;
        while let Some(export) = export_at(exports, at)
            && place < export.queues_running()
        {
            if let Some(first) = untold
                && export.is_crowded(place)
            {
                engine.finish();
                tell(&mut exports[first..=at]);
                untold = None;
                continue;
            }
            let took = export.poll_queue(place, engine, batch);
            if took.chains > 0 {
                untold = untold.or(Some(at));
            }
            all.chains += took.chains;
            all.queues += took.queues;
            all.more |= took.more;
            place += 1;
        }
    }
    // What NVMe queues have asked for may wait as well.
    engine.finish();
    if all.chains > 0 {
        // Also of what a device has answered meanwhile.
        tell(exports);
    }
    all
}

fn export_at<E: AsMut<BlkExport>>(exports: &mut [Option<E>], at: usize) -> Option<&mut BlkExport> {
    exports[at].as_mut().map(E::as_mut)
}

fn tell<E: AsMut<BlkExport>>(exports: &mut [Option<E>]) {
    for export in exports.iter_mut().flatten() {
        export.as_mut().publish();
    }
}
