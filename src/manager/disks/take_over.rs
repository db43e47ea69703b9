//! What an earlier manager left: workers that run, and disks that shall.
#![forbid(unsafe_code)]

use std::io;
use std::path::{Path, PathBuf};

use super::{Disks, blocking, system};
use crate::error::{Failure, Kind};
use crate::manager::adopt;
use crate::manager::state::{NamedRecord, Record};
use crate::manager::supervise::Outset;
use crate::manager::worker_process;

/// The longest path that fits into a socket address with its final zero.
const SOCKET_PATH_MAX: usize = 107;

impl Disks {
    /// Finds out what runs already, and has the rest attached.
    pub(super) async fn take_over(
        &self,
        records: Vec<NamedRecord>,
        mut sockets: Vec<PathBuf>,
    ) -> Result<(), Failure> {
        let mut begun = Vec::new();
        for (name, record) in records {
            let (record, outset) = match record {
                Ok(record) => {
                    let control = worker_process::control_path(&self.shared.workers, &record);
                    sockets.retain(|socket| *socket != control);
                    (record, Outset::Desired)
                }
                Err(error) => {
                    tracing::error!(disk = name, "{error}");
                    let unknown = Record::new(name, PathBuf::new(), PathBuf::new());
                    (unknown, Outset::Unusable(error.into()))
                }
            };
            let files = match outset {
                Outset::Unusable(_) => Vec::new(),
                _ => self.files_of(&record).await?,
            };
            match self.shared.registry.reserve(&record, files) {
                Ok(reserved) => begun.push(self.begin(record, reserved, outset)),
                // Two records cannot have come about by what this does.
                Err(failure) => tracing::error!(disk = record.name, "{failure}"),
            }
        }
        // Workers that no record is of: their state was lost.
        for socket in sockets {
            self.take_in(&socket).await?;
        }
        for looked in begun {
            // The task tells when it has looked for its worker.
            let _ = looked.await;
        }
        Ok(())
    }

    /// Takes in a worker of which the desired state knows nothing, and removes
    /// its socket if there is none. What it says is not written down: the
    /// state is what people wanted, and not what processes claim.
    async fn take_in(&self, socket: &Path) -> Result<(), Failure> {
        match adopt::adopt(socket, None).await {
            Ok(Some(found)) => {
                let record = found.record.clone();
                tracing::warn!(
                    disk = record.name,
                    "a worker serves a disk that is not on record"
                );
                let files = self.files_of(&record).await?;
                match self.shared.registry.reserve(&record, files) {
                    Ok(reserved) => {
                        let found = Outset::Found(Box::new(found));
                        let _ = self.begin(record, reserved, found).await;
                    }
                    Err(failure) => tracing::error!(disk = record.name, "{failure}"),
                }
            }
            Ok(None) => {
                tracing::info!(path = %socket.display(), "removing the socket of a worker that is gone");
                let socket = socket.to_owned();
                let _ = blocking(move || std::fs::remove_file(socket)).await?;
            }
            Err(failure) => {
                tracing::error!(path = %socket.display(), "a worker that is not on record: {failure}");
            }
        }
        Ok(())
    }
}

/// The sockets at which workers accept managers, alive or not.
pub(super) fn sockets_in(workers: &Path) -> Result<Vec<PathBuf>, Failure> {
    let read = || -> io::Result<Vec<PathBuf>> {
        let paths = std::fs::read_dir(workers)?.map(|entry| Ok(entry?.path()));
        let socket = |path: &io::Result<PathBuf>| {
            let path = path.as_ref().ok();
            path.is_none_or(|path| path.extension().is_some_and(|is| is == "sock"))
        };
        paths.filter(socket).collect()
    };
    // As long as that of any worker will be.
    let longest = workers.join(format!("{}.sock", uuid::Uuid::nil()));
    let length = longest.as_os_str().len();
    if length > SOCKET_PATH_MAX {
        return Err(Failure::new(
            Kind::Usage,
            format!(
                "the path of sockets such as {} has {length} bytes, and the system takes {SOCKET_PATH_MAX}",
                longest.display()
            ),
            Some("choose a run directory with a shorter path, such as /run/sealblk".into()),
        ));
    }
    read().map_err(system("cannot read the directory of the workers"))
}
