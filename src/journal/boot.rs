//! Which boot of the host an incarnation of a journal ran in: its id says so.
//!
//! ```text
//!  127                            48 47                     0
//! +---------------------------------+------------------------+
//! | random                          | of these and the boot  |
//! +---------------------------------+------------------------+
//! ```
//!
//! While a host runs on, the death of a process loses nothing that was written. So an opening that finds a written frame
//! damaged asks whether its incarnation ran in this boot: then it rotted, and is no torn tail. It has to be told by what
//! is there anyway, for an older program must be able to read it; an id is of no meaning to it. Ids of such programs say
//! "another boot", but for one in 2^48.

use xxhash_rust::xxh3::xxh3_64;

use crate::env::BootId;
use crate::units::IncarnationId;

/// The bits that say it. The rest is random enough: only incarnations of one group must differ, and a group has few.
const MARK: u128 = (1 << 48) - 1;

/// The id of an incarnation that begins in `boot`, if it is known which that is.
pub fn begin(random: u128, boot: Option<BootId>) -> IncarnationId {
    IncarnationId(boot.map_or(random, |boot| random & !MARK | mark(random, boot)))
}

/// Whether an incarnation ran in `boot`.
pub fn ran_in(incarnation: IncarnationId, boot: BootId) -> bool {
    incarnation.0 & MARK == mark(incarnation.0, boot)
}

fn mark(id: u128, boot: BootId) -> u128 {
    let mut bytes = [0; 32];
    bytes[..16].copy_from_slice(&(id & !MARK).to_le_bytes());
    bytes[16..].copy_from_slice(&boot.0.to_le_bytes());
    u128::from(xxh3_64(&bytes)) & MARK
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_incarnation_ran_in_its_own_boot_only() {
        let random = 0x0123_4567_89ab_cdef_0123_4567_89ab_cdef;
        let id = begin(random, Some(BootId(7)));
        assert_eq!(id.0 >> 48, random >> 48, "the rest stays random");
        assert!(ran_in(id, BootId(7)));
        assert!(!ran_in(id, BootId(8)));
        assert_ne!(begin(random + (1 << 48), Some(BootId(7))).0 & MARK, id.0 & MARK);
        let unknown = begin(random, None);
        assert_eq!(unknown.0, random);
        assert!(!ran_in(unknown, BootId(7)));
    }
}
