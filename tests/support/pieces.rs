//! The bytes of an answer.

use afterimage::block::DataPiece;
use afterimage::units::to_usize;

/// Pieces of data, one after the other.
pub fn flatten(pieces: &[DataPiece]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for piece in pieces {
        match piece {
            DataPiece::Bytes(slice) => bytes.extend_from_slice(slice),
            DataPiece::Zeros(count) => bytes.resize(bytes.len() + to_usize(*count), 0),
        }
    }
    bytes
}
