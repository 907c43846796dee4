//! Planted bugs: deliberate faults that prove the simulator can find what it claims to find.
//!
//! Without the `sim` feature the type is empty and [`Planted::is`] is `false` at compile time, so that no shipped
//! binary contains one. Each bug breaks exactly one rule of the failure model; `tests/simulation.rs` shows that
//! the normal workload finds each of them.

/// A rule to break.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bug {
    /// Writes are acknowledged when their frame is submitted, not when it is written.
    AcknowledgeBeforeWritten,
    /// Writes become visible to reads only some steps after they were acknowledged.
    VisibleAfterAcknowledged,
    /// A sync is taken to cover frames that were in flight when it was submitted.
    SyncCoversInFlight,
    /// A sync after a segment switch covers the new segment only.
    SegmentSwitchBeforeSync,
    /// A scan follows frames whose chain does not match.
    NoChainCheck,
    /// A scan follows frames of any incarnation.
    NoIncarnationCheck,
    /// A scan follows an opening that a newer one took the place of.
    ReplacedOpeningFollowed,
    /// A torn frame is taken for one that rotted, whether or not it was durable.
    TornTailTakenForRot,
    /// A frame that rotted is taken for a torn one, though it was written in this boot of the host.
    RotTakenForTornTail,
    /// What a device does not give of a segment is taken for never written.
    UnreadTakenForTorn,
    /// What was accepted at opening is served without having been synced and stated.
    AcceptanceNotRecorded,
    /// An opening believes what the page cache shows, also after a failed sync.
    PageCacheTrusted,
    /// Pages that a guest wrote pass for headers of the journal.
    GuestPagesBelieved,
    /// Records are destaged before they are durable.
    DestageAheadOfDurable,
    /// The checkpoint advances before the image is synced.
    CheckpointBeforeImageSync,
    /// Segments are recycled as soon as they are destaged, though the vault still needs them.
    EarlyRecycling,
    /// A delta is built from the interval's maps before the last of them is frozen.
    DeltaFromOpenMap,
    /// Group time is the wall clock's at each opening, also where that was set back.
    GroupTimeFromClock,
    /// Ages of points count group time that a clock which was ahead made pass, also once it was set right.
    LeapCounted,
    /// Points are published before their records are durable in the journal.
    PublishAheadOfDurable,
    /// A create whose reply was lost is taken for a loss to another writer.
    LostCreateReply,
    /// A blob is named by a manifest step before it was synced.
    BlobNotSynced,
    /// The journal lets go of a latched disk's records before the side file that holds them was synced.
    SideFileNotSynced,
    /// A side file does not note the records that rotted in the journal.
    UnreadableForgotten,
    /// What the journal holds of a disk whose files cannot be had at opening is taken to be in them.
    DetachedForgotten,
    /// What is read back from the journal is not compared with its checksum.
    UnverifiedRead,
    /// An index run is written before its frames are durable.
    RunAheadOfDurable,
    /// Points that a pin names are retired, and the base moves past them.
    BaseAdvancedUnderPin,
    /// Points go for lack of space before anybody was told.
    ShrinkUnannounced,
    /// The base is said to be advanced before its files are synced.
    BaseSetBeforeSync,
    /// A delta gives back what the base has taken in before a step says so.
    GivenBackBeforeStep,
    /// A delta gives back what a view reads of it.
    GivenBackUnderView,
    /// A merge lets the oldest bytes win.
    MergeOldestWins,
    /// The blobs that a merge replaces are deleted before the step that replaces them.
    BlobsDeletedBeforeStep,
    /// A step that frees space is not made of the reserve on a full disk.
    ReserveForgotten,
    /// Blobs are deleted although a view reads them.
    LeaseIgnored,
    /// What a disk gains is not zeroed in the journal: points show what older ones hold there.
    GrownTailShowsOld,
    /// Timed points are made although the group is paused.
    PauseForgotten,
    /// A new journal incarnation is sealed under the oldest of the group's keys.
    RetiredKeySeals,
    /// A rotation that adds a key to a group loses those before it.
    OldKeysForgotten,
    /// Keys are derived without the random id of what they seal.
    KeysWithoutIds,
    /// A summary is used although a merge, or an advance of the base, ended it.
    SummaryStale,
    /// A summary lets the oldest bytes win.
    SummaryOldestWins,
    /// A verification does not look at intervals that wait for the vault.
    VerifyForgetsWaiting,
    /// A verification says nothing of what does not match its sums.
    VerifySkips,
    /// A repair takes what it writes anew for holes.
    RenewedAsHoles,
    /// What is read from a base is not compared with its sums.
    BaseUnverified,
    /// The base is said to be advanced before its sums are synced.
    SumsNotSynced,
    /// The two copies of a block of sums are written at once.
    SumCopiesTogether,
    /// What is read from an image is not compared with its sums.
    ImageUnverified,
    /// The checkpoint advances before the sums of the image are synced.
    ImageSumsNotSynced,
    /// After a failure, an image's sums are written upon what is there as if it were durable.
    ImageSumsNotSettled,
    /// A block of an image's sums is written to the place that counts.
    ImageSumsInPlace,
    /// A read whose bytes do not match their sums is refused though a batch has written meanwhile.
    MismatchNotLookedAt,
    /// An image of before there were sums gets those of bytes that a batch has written over meanwhile.
    StaleSumsSettled,
    /// What is read from an overlay is not compared with its sums.
    OverlayUnverified,
    /// A flush of an overlay does not make its sums durable.
    OverlaySumsNotSynced,
    /// Sums of an overlay are written where those are that count.
    OverlaySumsInPlace,
}

impl Bug {
    /// All of them.
    pub const ALL: [Bug; 58] = [
        Bug::AcknowledgeBeforeWritten,
        Bug::VisibleAfterAcknowledged,
        Bug::SyncCoversInFlight,
        Bug::SegmentSwitchBeforeSync,
        Bug::NoChainCheck,
        Bug::NoIncarnationCheck,
        Bug::ReplacedOpeningFollowed,
        Bug::TornTailTakenForRot,
        Bug::RotTakenForTornTail,
        Bug::UnreadTakenForTorn,
        Bug::AcceptanceNotRecorded,
        Bug::PageCacheTrusted,
        Bug::GuestPagesBelieved,
        Bug::DestageAheadOfDurable,
        Bug::CheckpointBeforeImageSync,
        Bug::EarlyRecycling,
        Bug::DeltaFromOpenMap,
        Bug::GroupTimeFromClock,
        Bug::LeapCounted,
        Bug::PublishAheadOfDurable,
        Bug::LostCreateReply,
        Bug::BlobNotSynced,
        Bug::SideFileNotSynced,
        Bug::UnreadableForgotten,
        Bug::DetachedForgotten,
        Bug::UnverifiedRead,
        Bug::RunAheadOfDurable,
        Bug::BaseAdvancedUnderPin,
        Bug::ShrinkUnannounced,
        Bug::BaseSetBeforeSync,
        Bug::GivenBackBeforeStep,
        Bug::GivenBackUnderView,
        Bug::MergeOldestWins,
        Bug::BlobsDeletedBeforeStep,
        Bug::ReserveForgotten,
        Bug::LeaseIgnored,
        Bug::GrownTailShowsOld,
        Bug::PauseForgotten,
        Bug::RetiredKeySeals,
        Bug::OldKeysForgotten,
        Bug::KeysWithoutIds,
        Bug::SummaryStale,
        Bug::SummaryOldestWins,
        Bug::VerifyForgetsWaiting,
        Bug::VerifySkips,
        Bug::RenewedAsHoles,
        Bug::BaseUnverified,
        Bug::SumsNotSynced,
        Bug::SumCopiesTogether,
        Bug::ImageUnverified,
        Bug::ImageSumsNotSynced,
        Bug::ImageSumsNotSettled,
        Bug::ImageSumsInPlace,
        Bug::MismatchNotLookedAt,
        Bug::StaleSumsSettled,
        Bug::OverlayUnverified,
        Bug::OverlaySumsNotSynced,
        Bug::OverlaySumsInPlace,
    ];
}

/// Which bug, if any, is planted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Planted {
    #[cfg(feature = "sim")]
    bug: Option<Bug>,
}

impl Planted {
    /// No bug: the product.
    pub const NONE: Planted = Planted {
        #[cfg(feature = "sim")]
        bug: None,
    };

    /// Plants `bug`.
    #[cfg(feature = "sim")]
    pub const fn with(bug: Bug) -> Planted {
        Planted { bug: Some(bug) }
    }

    /// Whether `bug` is planted.
    #[cfg(feature = "sim")]
    pub fn is(self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    /// Whether `bug` is planted: never, in this build.
    #[cfg(not(feature = "sim"))]
    pub const fn is(self, _bug: Bug) -> bool {
        false
    }
}
