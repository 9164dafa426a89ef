//! Barring attempts. A bar is an empty file `.casparian/barred/<database>/<job / 1000>/<job>/<n>`:
//! attempts up to *n* may not publish. Bars are only added, so two workers that bar at the same time
//! cannot lower each other's bars.
//!
//! The bar is created first. Then the folders of the barred attempts are claimed. An attempt creates its
//! folder before it reads the bars, and reads them for the last time before its renames. So either it
//! finds the bar, or its folder existed when the folders were claimed, and its renames fail.

use std::fs;
use std::path::PathBuf;

use super::files::{self, is_absent};
use super::folder::{self, Entry};
use super::{Error, Root, recover};
use crate::job::Attempt;

/// Limit of passes over the staging folder. Further passes are needed when other workers claim the same
/// folders.
const PASSES_MAX: u32 = 100;

impl Root {
    /// Bars the attempts of a job up to the given one, and finishes or undoes what they left unfinished.
    /// Afterwards none of them can change visible output. `database` is the UUID of the job's database.
    /// Attempts without a number are not barred.
    pub fn bar(&self, database: &str, attempt: Attempt) -> Result<(), Error> {
        let database = folder::checked(database)?;
        if !attempt.is_numbered() {
            return Ok(());
        }
        self.check()?;
        let folder = self.bars(&database, attempt.job_id);
        files::create_own(self.path(), &folder)?;
        let bar = folder.join(attempt.number.to_string());
        files::create(&bar).map_err(|error| Error::io(&bar, error))?;
        // A pass may miss a folder that another worker renames meanwhile. So two passes in a row must
        // find none.
        let (mut clean, mut passes) = (0, 0);
        while clean < 2 {
            passes += 1;
            clean += 1;
            for entry in folder::entries(self)? {
                if let Entry::Attempt(name, _) = entry
                    && name.database == database
                    && name.attempt.job_id == attempt.job_id
                    && name.attempt.number <= attempt.number
                {
                    clean = 0;
                    recover::recover(self, &name)?;
                }
            }
            if passes > PASSES_MAX {
                return Err(Error::Io {
                    path: self.staging().to_owned(),
                    source: std::io::Error::other("folders of barred attempts do not go away"),
                });
            }
        }
        self.check()
    }

    /// The job's highest bar, when it bars the given attempt.
    pub(super) fn barred_by(&self, database: &str, attempt: Attempt) -> Result<Option<i64>, Error> {
        let folder = self.bars(database, attempt.job_id);
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) => return Err(Error::io(&folder, error)),
        };
        let mut highest = None;
        for entry in entries {
            let name = entry
                .map_err(|error| Error::io(&folder, error))?
                .file_name();
            let number = name.to_str().and_then(|name| name.parse::<i64>().ok());
            highest = highest.max(number.filter(|number| *number >= attempt.number));
        }
        Ok(highest)
    }

    /// An error when the attempt is barred.
    pub(super) fn check_bar(&self, database: &str, attempt: Attempt) -> Result<(), Error> {
        match self.barred_by(database, attempt)? {
            Some(by) => Err(Error::Barred { attempt, by }),
            None => Ok(()),
        }
    }

    fn bars(&self, database: &str, job_id: i64) -> PathBuf {
        let barred = self.base().join("barred").join(database);
        barred
            .join(job_id.div_euclid(1000).to_string())
            .join(job_id.to_string())
    }
}
