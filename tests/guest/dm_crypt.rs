//! The kernel's dm-crypt and sealblk read what the other one wrote, byte for
//! byte, in both sector sizes, with inline and detached headers.

use crate::MIB;
use crate::machine::Guest;
use crate::rescue::Rescue;
use crate::server::{Server, Volume, header_in, image_in, serve_with_sealblk};

/// Ends with a part of a MiB.
const SIZE: u64 = 6 * MIB + 65536 + 8192;

#[test]
fn dm_crypt_and_sealblk_read_each_other() {
    // All in one guest: starting one takes longer than all that it does here.
    let servers: Vec<Server> = [512, 4096]
        .into_iter()
        .flat_map(|sector_size| {
            let volume = Volume::new(SIZE, sector_size);
            [volume.clone(), volume.detached()]
        })
        .map(|volume| serve_with_sealblk(&volume.serve_with(&["--queues", "1"])))
        .collect();
    let mut guest = Guest::new("dm-crypt-both-ways");
    for (index, server) in servers.iter().enumerate() {
        let rescue = Rescue::of(server.directory());
        guest = guest
            .served_by(server)
            .raw(&image_in(server.directory()))
            .input(&format!("dek{index}"), rescue.dek());
        let header = header_in(server.directory());
        assert_eq!(header.exists(), index % 2 == 1);
        if header.exists() {
            guest = guest.input(&format!("header{index}"), &header);
        }
    }
    guest.succeed();
}
