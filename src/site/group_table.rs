//! The groups of a gateway by name, and for those that could not be opened: why.
//!
//! A group is here from the moment that its vault is found until it is removed, whether it could be opened or not; so
//! its name stays its own. One whose name nobody knows, or another has, goes by its id, which is a name as well.

use std::collections::BTreeMap;

use crate::control::model::{Failure, Reason, ReasonCode};
use crate::control::name::Name;
use crate::error::{Error, ErrorKind, Result};
use crate::units::{GroupId, WallNanos};

/// The groups of a gateway.
#[derive(Debug, Default)]
pub(super) struct GroupTable {
    entries: BTreeMap<Name, Entry>,
}

/// A group of the gateway.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// Its id.
    pub(super) id: GroupId,
    /// Why it could not be opened, if so.
    pub(super) failure: Option<OpeningFailure>,
}

/// Why a group could not be opened.
#[derive(Clone, Debug)]
pub(super) struct OpeningFailure {
    kind: ErrorKind,
    text: String,
    since: WallNanos,
    has_vault: bool,
}

impl GroupTable {
    /// The group that a person means by its name or its id, with the name that it goes by.
    pub(super) fn find(&self, meant: &Name) -> Result<(Name, Entry)> {
        let by_id = || self.entries.iter().find(|(_, entry)| entry.id.to_string() == meant.as_str());
        let missing =
            || Error::new(ErrorKind::NotFound, format!("there is no group {meant}: 'group list' shows them"));
        let found = self.entries.get_key_value(meant).or_else(by_id);
        found.map(|(name, entry)| (name.clone(), entry.clone())).ok_or_else(missing)
    }

    /// A group by its id, with the name that it goes by.
    pub(super) fn find_by_id(&self, id: GroupId) -> Option<(Name, Entry)> {
        let found = self.entries.iter().find(|(_, entry)| entry.id == id);
        found.map(|(name, entry)| (name.clone(), entry.clone()))
    }

    /// Whether a group goes by that name.
    pub(super) fn has(&self, name: &Name) -> bool {
        self.entries.contains_key(name)
    }

    /// Notes a group as it stands now; gives the name that it goes by from now on.
    pub(super) fn put(&mut self, entry: Entry, wanted: Option<Name>) -> Name {
        self.remove(entry.id);
        let own = || entry.id.to_string().parse().expect("an id is made of what names are made of");
        let name = match wanted {
            Some(name) if !self.entries.contains_key(&name) => name,
            Some(name) => {
                tracing::error!(group = %entry.id, %name, "another group has this name; this one goes by its id");
                own()
            }
            None => own(),
        };
        self.entries.insert(name.clone(), entry);
        name
    }

    /// The group is gone.
    pub(super) fn remove(&mut self, id: GroupId) {
        self.entries.retain(|_, entry| entry.id != id);
    }

    /// Every group, by name.
    pub(super) fn list(&self) -> Vec<(Name, Entry)> {
        self.entries.iter().map(|(name, entry)| (name.clone(), entry.clone())).collect()
    }
}

impl Entry {
    /// Whether a data thread hosts it: open, or with its vault alone.
    pub(super) fn is_hosted(&self) -> bool {
        self.failure.as_ref().is_none_or(|failure| failure.has_vault)
    }
}

impl OpeningFailure {
    /// What `error` said at that time; `has_vault` if the vault could be opened.
    pub(super) fn new(error: &Error, since: WallNanos, has_vault: bool) -> OpeningFailure {
        OpeningFailure { kind: error.kind(), text: error.to_string(), since, has_vault }
    }

    /// The same, for a group that could not be opened before either.
    pub(super) fn since(self, since: WallNanos) -> OpeningFailure {
        OpeningFailure { since, ..self }
    }

    /// The same, once the vault is not open any more.
    pub(super) fn without_vault(self) -> OpeningFailure {
        OpeningFailure { has_vault: false, ..self }
    }

    /// Whether all that it lacks may come by itself: space, or a file that another process has locked.
    pub(super) fn may_pass(&self) -> bool {
        self.kind == ErrorKind::NoSpace || self.is_locked()
    }

    /// Whether another process has locked one of its files.
    pub(super) fn is_locked(&self) -> bool {
        self.kind == ErrorKind::Locked
    }

    /// Whether it is a key that it lacks.
    pub(super) fn wants_key(&self) -> bool {
        self.kind == ErrorKind::NoKey
    }

    /// What people are told of the group of that name.
    pub(super) fn model(&self, name: &Name) -> Failure {
        let reason = Reason { code: self.code(), detail: self.text.clone(), mend: self.mend(name) };
        Failure { reason, since: self.since }
    }

    fn code(&self) -> ReasonCode {
        match self.kind {
            ErrorKind::NoSpace => ReasonCode::NoSpace,
            ErrorKind::Corrupt => ReasonCode::Corrupt,
            ErrorKind::NotFound => ReasonCode::Missing,
            ErrorKind::Unsupported => ReasonCode::Unsupported,
            ErrorKind::NoKey => ReasonCode::NoKey,
            ErrorKind::Fenced => ReasonCode::Fenced,
            ErrorKind::Locked => ReasonCode::Locked,
            _ => ReasonCode::Io,
        }
    }

    fn mend(&self, name: &Name) -> String {
        let first = match self.kind {
            ErrorKind::NoSpace => "free space: it is tried again every few seconds, and at once by",
            ErrorKind::Locked => "end that process: it is tried again every few seconds, and at once by",
            ErrorKind::Corrupt | ErrorKind::NotFound => "put the files back as they were, then",
            ErrorKind::NoKey => {
                "bring the site key that it names ('key import FILE', or put its file back), then"
            }
            ErrorKind::Unsupported => {
                "start the program that wrote it, or another that supports it, or change what is refused, then"
            }
            ErrorKind::Latched => "do what the reason says; it is looked at again by",
            _ => "mend what the reason names, then",
        };
        let meanwhile = match self.has_vault {
            true => {
                format!("; meanwhile its points can be had: 'point list {name}', 'restore', 'failover test'")
            }
            false => String::new(),
        };
        format!("{first} 'group resume {name}'{meanwhile}")
    }

    /// Why the disks of the group of that name are not served: for a client of its exports.
    pub(super) fn told_clients(&self, name: &Name) -> String {
        format!("group {name} could not be opened: {}", self.text)
    }

    /// What is told of it when it is found, for people to look back at.
    pub(super) fn event(&self, name: &Name) -> String {
        format!("could not be opened: {}: {}", self.text, self.mend(name))
    }

    /// The refusal of a verb that needs the group of that name to be open, or its vault.
    pub(super) fn refusal(&self, name: &Name) -> Error {
        let text = format!("{}: {}", self.told_clients(name), self.mend(name));
        Error::new(ErrorKind::Latched, text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn open(id: u128) -> Entry {
        Entry { id: GroupId(id), failure: None }
    }

    #[test]
    fn a_name_has_one_owner_and_an_id_is_a_name() {
        let mut table = GroupTable::default();
        assert_eq!(table.put(open(1), Some(name("erp"))), name("erp"));
        let second = table.put(open(2), Some(name("erp")));
        assert_eq!(second.as_str(), GroupId(2).to_string());
        assert_eq!(table.find(&name("erp")).unwrap().1.id, GroupId(1));
        assert_eq!(table.find(&second).unwrap().1.id, GroupId(2));
        let by_id = table.find(&name(&GroupId(1).to_string())).unwrap();
        assert_eq!((by_id.0, by_id.1.id), (name("erp"), GroupId(1)));
        table.remove(GroupId(1));
        assert_eq!(table.find(&name("erp")).unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(table.put(open(2), Some(name("erp"))), name("erp"), "it takes its name when it can");
        assert_eq!(table.list().len(), 1);
    }

    #[test]
    fn a_refusal_names_reason_and_mend() {
        for (kind, code, fragment) in [
            (ErrorKind::NoSpace, ReasonCode::NoSpace, "free space"),
            (ErrorKind::Corrupt, ReasonCode::Corrupt, "put the files back"),
            (ErrorKind::NotFound, ReasonCode::Missing, "put the files back"),
            (ErrorKind::Unsupported, ReasonCode::Unsupported, "supports it"),
            (ErrorKind::NoKey, ReasonCode::NoKey, "'key import FILE', or put its file back"),
            (ErrorKind::Io, ReasonCode::Io, "mend what"),
            (ErrorKind::Locked, ReasonCode::Locked, "end that process"),
            (ErrorKind::Latched, ReasonCode::Io, "do what the reason says"),
        ] {
            for has_vault in [false, true] {
                let failure = OpeningFailure::new(&Error::new(kind, "it broke"), WallNanos(7), has_vault);
                let refusal = failure.refusal(&name("erp"));
                assert_eq!(refusal.kind(), ErrorKind::Latched);
                let told = refusal.to_string();
                assert!(told.contains("it broke") && told.contains(fragment), "{told}");
                assert!(told.contains("'group resume erp'"), "{told}");
                assert_eq!(told.contains("'restore'"), has_vault, "{told}");
                assert_eq!(failure.model(&name("erp")).reason.code, code);
                assert_eq!(failure.may_pass(), [ErrorKind::NoSpace, ErrorKind::Locked].contains(&kind));
                assert_eq!(failure.wants_key(), kind == ErrorKind::NoKey);
            }
        }
    }
}
