//! The plan of a publish: what it will change, and whether it may. Planning changes no visible output; it
//! only creates folders.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Component, Path, PathBuf};

use super::files::{self, Identity};
use super::folder::Folder;
use super::location::{self, FileId};
use super::names::{self, Holder};
use super::record::{self, FileOutput, MadeWith, Outputs, Record, State};
use super::sqlite::{self, Table, Target as Database};
use super::staged::{Staged, StagedSink};
use super::table_output::TableOutput;
use super::{Error, Root, moving, old_peers, siblings};
use crate::job::{Job, Mode, PastEnd, Target};

/// The plan of a publish that is permitted.
pub(super) struct Plan {
    /// The record to write as the intent.
    pub(super) record: Record,
    /// Databases to prepare, in an order that is the same for all jobs, so that two jobs cannot deadlock.
    pub(super) tables: Vec<Database>,
    /// True when the job has a record or earlier output.
    pub(super) has_earlier: bool,
}

/// The files of Parquet sinks that need a claim (modes `replace` and `error`), as quoted paths below the
/// root with links followed.
pub(super) fn exclusive(staged: &Staged) -> Vec<String> {
    let anyone = Holder::new(crate::job::Attempt::new(0, 0), None);
    let sinks = staged.sinks.iter().filter(|sink| sink.mode != Mode::Append);
    let files = sinks.filter_map(|sink| match &sink.target {
        Target::Parquet { path, .. } => Some(names::file(path, &anyone)),
        Target::Sqlite { .. } => None,
    });
    let root = staged.root.path();
    let real = |file: PathBuf| location::below(root, &root.join(&file)).map_or(file, PathBuf::from);
    // A claim has one path on each line. Quoting escapes line breaks in names.
    files.map(|file| format!("{:?}", real(file))).collect()
}

pub(super) fn make(staged: &mut Staged) -> Result<Plan, Error> {
    let Staged {
        root,
        job,
        folder,
        sinks,
        ..
    } = staged;
    let name = folder.name.clone();
    let is_file = |sink: &StagedSink| matches!(sink.target, Target::Parquet { .. });
    let suffix = match sinks.iter().any(is_file) {
        true => root.suffix(folder)?,
        false => root.mark(&name)?,
    };
    let holder = Holder::new(name.attempt, suffix);
    let mut before = record::read(root, &name)?;
    if let Some(before) = &before
        && name.is_numbered()
        && before.attempt >= name.attempt.number
    {
        return Err(Error::Copied {
            attempt: name.attempt,
            recorded: before.attempt,
        });
    }
    // The recorded attempt was dispatched by another copy of the database.
    if let Some(before) = &before
        && name.is_numbered()
        && job
            .history
            .is_foreign(before.attempt, before.key, name.attempt)
    {
        return Err(Error::Copied {
            attempt: name.attempt,
            recorded: before.attempt,
        });
    }
    if let Some(before) = &mut before {
        moving::end(root, folder, before)?;
    }
    let named = location::named(root.path(), &job.previous);
    let mut earlier = before
        .as_ref()
        .map(Record::possible_outputs)
        .unwrap_or_default();
    let is_unchanged = |file: &FileOutput| -> Result<bool, Error> {
        Ok(files::identity(&root.path().join(&file.path))? == Some(file.identity))
    };
    let mut unchanged = Vec::new();
    for file in earlier.files {
        if is_unchanged(&file)? {
            unchanged.push(file);
        }
    }
    earlier.files = unchanged;
    // An attempt that was reported as failed leaves no output without a receipt. So such output under its
    // number was published by another copy of the database.
    if let Some(before) = &before
        && job.history.end(before.attempt) == PastEnd::Failed
        && !unnamed(root, &named, &earlier).is_empty()
    {
        return Err(Error::Copied {
            attempt: name.attempt,
            recorded: before.attempt,
        });
    }
    // Output that earlier attempts could not remove.
    let mut removes = Vec::new();
    if let Some(before) = before.as_ref().filter(|before| before.has_leftovers) {
        for file in &before.removes {
            let is_own = names::is_of(&root.path().join(&file.path), &holder);
            if is_unchanged(file)? {
                let list = match is_own {
                    true => &mut earlier.files,
                    false => &mut removes,
                };
                list.push(file.clone());
            }
        }
        earlier.tables.extend(before.clears.iter().cloned());
    }
    add_named(root, &job.previous, &holder, &mut earlier)?;

    let known: HashSet<String> = earlier.files.iter().map(|file| file.path.clone()).collect();
    let mut outputs = Outputs {
        made_with: MadeWith::new(&job.plugin.artifact_hash, &job.parameters),
        ..Outputs::default()
    };
    for sink in sinks.iter() {
        if let Target::Parquet { path, .. } = &sink.target {
            let file = plan_file(root, folder, sink, path, &holder)?;
            let target = root.path().join(&file.path);
            let found = files::identity(&target)?;
            let is_known = known.contains(&file.path);
            match found {
                Some(identity) if !is_known => {
                    // For an old sentinel, a file with the job's name counts as the job's output.
                    let is_its = !name.is_numbered()
                        || old_peers::is_output(root, job, &holder, (&target, identity))?;
                    if !is_its {
                        return Err(Error::not_ours(target));
                    }
                    earlier.files.push(named_file(file.path.clone(), identity));
                }
                _ => {}
            }
            removes.extend(others(root, sink, path, &holder, folder, &file)?);
            outputs.files.push(file);
        }
    }
    let databases = plan_tables(root, sinks)?;
    for found in &databases {
        outputs
            .tables
            .extend(found.tables.iter().map(|table| TableOutput {
                topic: table.topic.clone(),
                database: found.path.clone(),
                below: found.below.clone(),
                table: table.name.clone(),
                rows: table.rows,
                mode: table.mode.as_str().to_owned(),
                columns: table.columns.clone(),
            }));
    }
    let new: HashSet<&str> = outputs
        .files
        .iter()
        .map(|file| file.path.as_str())
        .collect();
    let is_new = |path: &str| !new.contains(path);
    removes.extend(
        earlier
            .files
            .iter()
            .filter(|file| is_new(&file.path))
            .cloned(),
    );
    removes.sort_by(|a, b| a.path.cmp(&b.path));
    removes.dedup_by(|a, b| a.path == b.path);
    for file in &mut removes {
        file.bay = folder.bay(Path::new(&file.path))?;
    }

    let has_earlier = before.is_some() || !earlier.is_empty();
    let mut record = Record::intent(root, &name, outputs);
    if record.outputs.is_empty() {
        record.state = State::Committed;
    }
    record.key = job.history.key;
    record.replaces = replaces(
        root,
        &named,
        job,
        before.as_ref(),
        &earlier,
        &removes,
        &record.outputs,
    );
    if let Some(before) = &before {
        // Of an attempt that may not have committed, only what a receipt names was published.
        let is_published = before.state == State::Committed
            || job.history.end(before.attempt) == PastEnd::Completed;
        let is_changed = |file: &&FileOutput| {
            let uri = names::file_uri(&root.path().join(&file.path));
            !earlier.files.iter().any(|other| other.path == file.path)
                && (is_published || named.contains(&uri))
        };
        let files = before.outputs.files.iter();
        record.previous_changed = files.filter(is_changed).cloned().collect();
        record.previous_attempt = before.attempt;
        record.previous_key = before.key;
        record.previous_replaces = before.replaces;
    }
    record.clears.clone_from(&earlier.tables);
    record.clears = record.cleared().into_iter().cloned().collect();
    record.previous = earlier;
    record.removes = removes;
    let tables = databases.into_iter().map(|found| Database {
        database: found.path.into(),
        tables: found.tables,
        run: name.clone(),
        previous: named.iter().cloned().collect(),
        file_version_id: job.file_version_id,
        history: job.history.clone(),
        share: root.shares(),
    });
    Ok(Plan {
        record,
        tables: tables.collect(),
        has_earlier,
    })
}

/// True when the publish replaces output with a receipt.
fn replaces(
    root: &Root,
    named: &HashSet<String>,
    job: &Job,
    before: Option<&Record>,
    earlier: &Outputs,
    removes: &[FileOutput],
    outputs: &Outputs,
) -> bool {
    let is_own = |file: &FileOutput| earlier.files.iter().any(|own| own.path == file.path);
    let has_receipt =
        |before: &Record| before.replaces || before.attempt <= job.history.completed();
    let of_own = !earlier.is_empty()
        && (before.is_none_or(has_receipt)
            || unnamed(root, named, earlier).len() < earlier.files.len() + earlier.tables.len());
    let replace = Mode::Replace.as_str();
    of_own
        || !removes.iter().all(is_own)
        || outputs.tables.iter().any(|table| table.mode == replace)
}

fn named_file(path: String, identity: Identity) -> FileOutput {
    FileOutput {
        topic: String::new(),
        path,
        also: None,
        identity,
        rows: 0,
        sha256: None,
        mode: String::new(),
        index: 0,
        bay: None,
    }
}

/// Adds the outputs that the job's receipts name. Receipts are text from a database, and a copied
/// database has the receipts of the original. So a file counts only if it is below the root and its name
/// is one of this job and database.
fn add_named(
    root: &Root,
    previous: &[String],
    holder: &Holder,
    earlier: &mut Outputs,
) -> Result<(), Error> {
    let mut known: HashSet<String> = earlier.files.iter().map(|file| file.path.clone()).collect();
    for uri in previous {
        if let Some(path) = names::file_of(uri) {
            let Some(below) = location::below(root.path(), path) else {
                continue;
            };
            let is_plain = Path::new(&below)
                .components()
                .all(|part| matches!(part, Component::Normal(part) if part != ".casparian"));
            let path = root.path().join(&below);
            if !is_plain || known.contains(&below) || !names::is_of(&path, holder) {
                continue;
            }
            if let Some(identity) = files::identity(&path)?
                && identity != Identity::default()
                && files::inside(root.path(), &path).is_ok()
            {
                known.insert(below.clone());
                earlier.files.push(named_file(below, identity));
            }
        } else if let Some((database, table)) = names::table_of(uri) {
            let (database, below) = location::database(root.path(), database);
            if !root.may_contain(database.as_ref(), below.as_deref()) {
                continue;
            }
            let is_known = earlier
                .tables
                .iter()
                .any(|other| other.database == database && other.table.eq_ignore_ascii_case(table));
            if !is_known {
                earlier
                    .tables
                    .push(TableOutput::named(database, below, table));
            }
        }
    }
    Ok(())
}

/// The file that a sink will publish.
fn plan_file(
    root: &Root,
    folder: &mut Folder,
    sink: &StagedSink,
    path: &Path,
    holder: &Holder,
) -> Result<FileOutput, Error> {
    let given = names::file(path, holder);
    let target = root.path().join(&given);
    root.anchor().check_mounts(&target)?;
    files::inside(root.path(), &target)?;
    let real = location::below(root.path(), &target);
    location::check_below(&target, real.as_deref())?;
    if let Some(parent) = target.parent() {
        files::create_folders(root.path(), parent, files::PUBLIC_MODE)?;
    }
    let staged = folder.path_in(sink.bay.as_deref(), &format!("s{}", sink.index));
    let identity = files::identity(&staged)?;
    let Some(identity) = identity else {
        return Err(folder.refusal(Error::io(&staged, std::io::ErrorKind::NotFound.into())));
    };
    let path = real.or_else(|| given.to_str().map(str::to_owned));
    Ok(FileOutput {
        topic: sink.topic.clone(),
        path: path.ok_or(Error::Outside { path: given })?,
        also: None,
        identity,
        rows: sink.rows,
        sha256: sink.sha256.clone(),
        mode: sink.mode.as_str().to_owned(),
        index: sink.index,
        bay: sink.bay.clone(),
    })
}

/// Files of other jobs that the publish removes. With mode `replace` these are the files that a record of
/// the same database names. With mode `error` files of other jobs are an error.
fn others(
    root: &Root,
    sink: &StagedSink,
    path: &Path,
    holder: &Holder,
    folder: &Folder,
    own: &FileOutput,
) -> Result<Vec<FileOutput>, Error> {
    match sink.mode {
        Mode::Append => return Ok(Vec::new()),
        Mode::Error => {
            siblings::refuse(root, &folder.name, path, holder)?;
            return Ok(Vec::new());
        }
        Mode::Replace => {}
    }
    let mut found = Vec::new();
    for (path, other) in names::siblings(&root.path().join(path), holder) {
        if other.suffix != holder.suffix {
            continue;
        }
        let record = record::of_other(root, &folder.name, other.job_id, other.incarnation);
        let Some(record) = record else { continue };
        if record.state == State::Intent && !record.is_one_rename() {
            continue;
        }
        let identity = files::identity(&path)?;
        let name = path.file_name().unwrap_or_default();
        let below = Path::new(&own.path).with_file_name(name);
        let files = record.outputs.files.into_iter();
        found.extend(
            files.filter(|file| Path::new(&file.path) == below && Some(file.identity) == identity),
        );
    }
    Ok(found)
}

/// A database of the job's sinks.
struct Found {
    path: String,
    below: Option<String>,
    tables: Vec<Table>,
}

/// The databases of the sinks, in an order that is the same for every worker.
fn plan_tables(root: &Root, sinks: &[StagedSink]) -> Result<Vec<Found>, Error> {
    let mut databases: BTreeMap<String, Found> = BTreeMap::new();
    let mut keys: HashMap<FileId, String> = HashMap::new();
    for sink in sinks {
        let Target::Sqlite { database, table } = &sink.target else {
            continue;
        };
        let (path, below) = locate(root, database)?;
        let key = below.as_ref().unwrap_or(&path);
        let key = keys
            .entry(FileId::of(Path::new(&path)))
            .or_insert(key.clone());
        let found = databases.entry(key.clone()).or_insert(Found {
            path,
            below,
            tables: Vec::new(),
        });
        found.tables.push(Table {
            name: table.clone(),
            topic: sink.topic.clone(),
            mode: sink.mode,
            index: sink.index,
            rows: sink.rows,
            columns: sink.columns.clone(),
        });
    }
    Ok(databases.into_values().collect())
}

/// The path of a sink's database, and its path relative to the root if it is below the root. An error if
/// the database may not be there. Creates its missing folders below the root.
pub(super) fn locate(root: &Root, database: &Path) -> Result<(String, Option<String>), Error> {
    let path = root.path().join(database);
    root.anchor().check_mounts(&path)?;
    let (_, below) = location::database(root.path(), &path.to_string_lossy());
    location::check_below(&path, below.as_deref())?;
    if database.is_relative() {
        files::inside(root.path(), &path)?;
        if let Some(parent) = path.parent() {
            files::create_folders(root.path(), parent, files::PUBLIC_MODE)?;
        }
        // The database itself may be a link.
        if path.symlink_metadata().is_ok() {
            files::inside(root.path(), &files::real(&path)?)?;
        }
    }
    // If a link leads to a path that is not UTF-8, the database keeps the name of the link.
    let real = location::real(&path);
    let (path, below) = location::database(root.path(), &path.to_string_lossy());
    if !root.may_contain(&real, below.as_deref()) {
        let reason = match root.is_closed() {
            true => {
                "casparian run writes into its output folder alone; use a sentinel and workers for \
                 a sink elsewhere"
            }
            false => {
                "it is neither in the output folder nor in one that the worker's --sink-root names"
            }
        };
        return Err(Error::at_path(Path::new(&path), reason));
    }
    sqlite::check_file(Path::new(&path))?;
    Ok((path, below))
}

/// URIs of those outputs that no receipt of the job names.
fn unnamed(root: &Root, named: &HashSet<String>, outputs: &Outputs) -> Vec<String> {
    let files = outputs.files.iter();
    let files = files.map(|file| names::file_uri(&root.path().join(&file.path)));
    let tables = outputs.tables.iter();
    let tables = tables.map(|table| names::table_uri(Path::new(&table.database), &table.table));
    files
        .chain(tables)
        .filter(|uri| !named.contains(uri))
        .collect()
}
