//! The catalogue's tables, each spelled once: what they are made with, read by, and written through.
//!
//! Every row begins with the sum of the rest ([`super::sums`]). It stands first, so that a row that is so long that it goes on in other
//! pages has its sum in one piece.

/// Given a new number with every change of the tables, be it of a blank: what stands in the file is compared with what is here.
pub(super) const SCHEMA_VERSION: i64 = 5;
/// The versions before, whose rows have no sums: 3 has no samples either, and 2 neither an id nor cursors of hooks, audit trail, jobs.
pub(super) const SCHEMA_VERSIONS_BEFORE: [i64; 3] = [4, 3, 2];

/// A table.
#[derive(Debug)]
pub(super) struct Table {
    pub name: &'static str,
    /// Its columns but for the sum, in their order.
    pub columns: &'static [&'static str],
    /// So many of them, the first, are its primary key.
    pub keys: usize,
    definition: &'static str,
}

impl Table {
    pub fn key(&self) -> &'static [&'static str] {
        &self.columns[..self.keys]
    }

    /// What makes it, as SQLite keeps it.
    pub fn text(&self) -> String {
        format!("CREATE TABLE {} (sum BLOB NOT NULL, {})", self.name, self.definition)
    }
}

pub(super) const CATALOGUE: Table = Table {
    name: "catalogue",
    columns: &["singleton", "schema_version", "id", "events_before"],
    keys: 1,
    definition: "singleton BIGINT PRIMARY KEY, schema_version BIGINT NOT NULL, id BLOB NOT NULL, \
        events_before BIGINT NOT NULL",
};
pub(super) const GROUPS: Table = Table {
    name: "protection_groups",
    columns: &["id", "name", "created_ns"],
    keys: 1,
    definition: "id BLOB PRIMARY KEY, name TEXT NOT NULL UNIQUE, created_ns BIGINT NOT NULL",
};
pub(super) const POLICIES: Table = Table {
    name: "policies",
    columns: &["group_id", "interval_ms"],
    keys: 1,
    definition: "group_id BLOB PRIMARY KEY, interval_ms BIGINT NOT NULL",
};
pub(super) const DISKS: Table = Table {
    name: "disks",
    columns: &["id", "group_id", "name", "sectors"],
    keys: 1,
    definition: "id BLOB PRIMARY KEY, group_id BLOB NOT NULL, name TEXT NOT NULL, sectors BIGINT NOT NULL, \
        UNIQUE (group_id, name)",
};
pub(super) const POINTS: Table = Table {
    name: "points",
    columns: &["group_id", "lsn", "id", "time_ns", "kind", "label", "delta_bytes"],
    keys: 2,
    definition: "group_id BLOB NOT NULL, lsn BIGINT NOT NULL, id BLOB NOT NULL, time_ns BIGINT NOT NULL, \
        kind TEXT NOT NULL, label TEXT, delta_bytes BIGINT NOT NULL, PRIMARY KEY (group_id, lsn)",
};
pub(super) const TESTS: Table = Table {
    name: "tests",
    columns: &["group_id", "number", "point_id", "started_ns"],
    keys: 2,
    definition: "group_id BLOB NOT NULL, number BIGINT NOT NULL, point_id BLOB NOT NULL, \
        started_ns BIGINT NOT NULL, PRIMARY KEY (group_id, number)",
};
pub(super) const EVENTS: Table = Table {
    name: "events",
    columns: &["sequence", "time_ns", "group_id", "name", "severity", "code", "message"],
    keys: 1,
    definition: "sequence BIGINT PRIMARY KEY, time_ns BIGINT NOT NULL, group_id BLOB, name TEXT, \
        severity TEXT NOT NULL, code TEXT NOT NULL, message TEXT NOT NULL",
};
pub(super) const HOOK_CURSORS: Table = Table {
    name: "hook_cursors",
    columns: &["name", "sequence"],
    keys: 1,
    definition: "name TEXT PRIMARY KEY, sequence BIGINT NOT NULL",
};
pub(super) const AUDIT: Table = Table {
    name: "audit",
    columns: &["sequence", "record"],
    keys: 1,
    definition: "sequence BIGINT PRIMARY KEY, record TEXT NOT NULL",
};
pub(super) const JOBS: Table = Table {
    name: "jobs",
    columns: &["sequence", "id", "job"],
    keys: 1,
    definition: "sequence BIGINT PRIMARY KEY, id TEXT NOT NULL UNIQUE, job TEXT NOT NULL",
};
pub(super) const SAMPLES: Table = Table {
    name: "samples",
    columns: &["group_id", "span_s", "start_ns", "sample"],
    keys: 3,
    definition: "group_id BLOB NOT NULL, span_s BIGINT NOT NULL, start_ns BIGINT NOT NULL, \
        sample TEXT NOT NULL, PRIMARY KEY (group_id, span_s, start_ns)",
};

/// All but the first, which says what the file is.
pub(super) const TABLES: [&Table; 10] =
    [&GROUPS, &POLICIES, &DISKS, &POINTS, &TESTS, &EVENTS, &HOOK_CURSORS, &AUDIT, &JOBS, &SAMPLES];

#[cfg(test)]
mod tests {
    use super::*;

    /// A file whose tables are others is taken for damaged: so another text needs another number, and taking over.
    #[test]
    fn another_text_needs_another_number() {
        let texts: Vec<String> =
            std::iter::once(&CATALOGUE).chain(TABLES).map(|table| table.text()).collect();
        let sum = crate::format::checksum(texts.join(";").as_bytes());
        assert_eq!((SCHEMA_VERSION, format!("{sum:032x}").as_str()), (5, "0d7576a9bc53a4a6b6efcb3297fca1f1"));
    }

    #[test]
    fn the_columns_are_those_of_the_text() {
        for table in std::iter::once(&CATALOGUE).chain(TABLES) {
            let mut at = 0;
            for column in table.columns {
                let found = table.definition[at..].find(&format!("{column} "));
                at += found.unwrap_or_else(|| panic!("{}.{column}, in that order", table.name));
            }
        }
    }
}
