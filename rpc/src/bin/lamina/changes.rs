//! `lamina snapshot diff`: what changed, as extents.

use std::fmt::Write;

use lamina_rpc::methods::{DiffExtent, LaminaSnapshotDiff};
use serde_json::json;

use crate::answer::Answer;
use crate::failure::Failure;
use crate::session::{SEE_TREE, Session};
use crate::size::human;

/// Extents asked for at once.
const PAGE_EXTENTS: u32 = 4096;

/// From `older` to `newer`, or to what its disk is now.
pub fn diff(session: &mut Session, older: &str, newer: Option<String>) -> Result<Answer, Failure> {
    let newer_text = newer.clone().unwrap_or_else(|| "now".into());
    let mut params = LaminaSnapshotDiff {
        snapshot: newer,
        since: Some(older.into()),
        offset: None,
        max: Some(PAGE_EXTENTS),
    };
    let mut extents: Vec<DiffExtent> = Vec::new();
    let size = loop {
        let page = session
            .call(format!("comparing {older} with {newer_text}"), &params)
            .map_err(|failure| failure.hint(SEE_TREE))?;
        extents.extend(page.extents);
        let Some(next) = page.next else { break page.size };
        if params.offset.is_some_and(|offset| next <= offset) {
            return Err(Failure::other("the daemon's list of changes does not go on"));
        }
        // Of a "now" the further pages are of the same moment.
        params = LaminaSnapshotDiff { snapshot: Some(page.snapshot), offset: Some(next), ..params };
    };
    let extents = joined(extents);
    let sum = |kind: &str| -> u64 {
        extents.iter().filter(|extent| extent.kind == kind).map(|extent| extent.length).sum()
    };
    let (data, holes) = (sum("data"), sum("hole"));
    let mut text = String::new();
    for extent in &extents {
        let _ = writeln!(text, "{:>16} {:>14}  {}", extent.offset, extent.length, extent.kind);
    }
    let count = match extents.len() {
        1 => "1 extent".to_string(),
        many => format!("{many} extents"),
    };
    let _ = writeln!(
        text,
        "{older} to {newer_text}: {} changed ({} data, {} holes) in {count}",
        human(data + holes),
        human(data),
        human(holes),
    );
    let answer = json!({
        "from": older, "to": newer_text, "size": size, "extents": extents,
        "changed": data + holes, "data": data, "holes": holes,
    });
    Answer::new(text, answer)
}

/// Extents that pages have cut are put together again.
fn joined(extents: Vec<DiffExtent>) -> Vec<DiffExtent> {
    let mut out: Vec<DiffExtent> = Vec::with_capacity(extents.len());
    for extent in extents {
        match out.last_mut() {
            Some(last)
                if last.kind == extent.kind
                    && last.offset.checked_add(last.length) == Some(extent.offset) =>
            {
                last.length += extent.length;
            }
            Some(_) | None => out.push(extent),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_pages_have_cut_is_joined() {
        let extent = |offset, length, kind: &str| DiffExtent { offset, length, kind: kind.into() };
        let cut = vec![
            extent(0, 4096, "data"),
            extent(4096, 4096, "data"),
            extent(8192, 4096, "hole"),
            extent(16384, 4096, "hole"),
        ];
        let whole =
            vec![extent(0, 8192, "data"), extent(8192, 4096, "hole"), extent(16384, 4096, "hole")];
        assert_eq!(joined(cut), whole);
    }
}
