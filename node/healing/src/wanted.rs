//! What a study is to have, and what of it is coded otherwise: the reads of the catalog that re-encoding is made of.
//!
//! **Invariants.** Reads only. A page keeps at most [`FOUND_MAX`] versions, however many one instance has.

use std::collections::BTreeMap;

use pacsvault_core::{
    catalog::{Error, SealedInstance, View, query},
    ids::{ProfileName, VersionNumber},
    layout::profile::Code,
};

use crate::recode::Study;

/// Rows read at once.
const ROWS: usize = 1_000;
/// Listed instances of one page; the page of a listing ends at 1 MiB of records too.
const PAGE: usize = 64;
/// Versions of one page that are kept to be re-encoded; what is beyond is found by the next count.
const FOUND_MAX: usize = 512;

/// All wanted profiles.
pub(crate) fn read_rows(view: &dyn View) -> Result<BTreeMap<Study, ProfileName>, Error> {
    let mut rows = BTreeMap::new();
    loop {
        let after = rows.last_key_value().map(|(study, _): (&Study, _)| study.clone());
        let page = query::study_profiles(view, after, ROWS)?;
        let end = page.len() < ROWS;
        rows.extend(page.into_iter().map(|(tenant, study, profile)| ((tenant, study), profile)));
        if end {
            return Ok(rows);
        }
    }
}

/// What one study is to have.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    pub(crate) study: Study,
    pub(crate) profile: ProfileName,
    pub(crate) code: Code,
}

/// Versions of a study that are coded otherwise, from a part of its listing.
#[derive(Default)]
pub(crate) struct Page {
    pub(crate) found: Vec<SealedInstance>,
    /// All of them, kept in `found` or not.
    pub(crate) count: u64,
    /// Empty at the end.
    pub(crate) next: Vec<u8>,
}

impl Wanted {
    fn differs(&self, sealed: &SealedInstance) -> bool {
        sealed.seal.profile != self.profile || sealed.seal.code != self.code
    }

    /// What a part of the listing has of other codes.
    pub(crate) fn page(&self, view: &dyn View, token: &[u8]) -> Result<Page, Error> {
        let (tenant, study) = &self.study;
        let listed = query::list(view, tenant, Some(study), None, false, token, PAGE)?;
        let mut page = Page { next: listed.next_page_token, ..Page::default() };
        for newest in listed.instances {
            for number in 1..newest.version.0 {
                let older = query::lookup(view, &newest.seal.key, Some(VersionNumber(number)))?;
                self.take(&mut page, older);
            }
            self.take(&mut page, Some(newest));
        }
        Ok(page)
    }

    fn take(&self, page: &mut Page, sealed: Option<SealedInstance>) {
        let Some(sealed) = sealed.filter(|sealed| self.differs(sealed)) else { return };
        page.count += 1;
        if page.found.len() < FOUND_MAX {
            page.found.push(sealed);
        }
    }

    /// Versions of the whole study that are coded otherwise.
    pub(crate) fn count(&self, view: &dyn View) -> Result<u64, Error> {
        let (mut count, mut token) = (0, Vec::new());
        loop {
            let page = self.page(view, &token)?;
            count += page.count;
            token = page.next;
            if token.is_empty() {
                return Ok(count);
            }
        }
    }
}
