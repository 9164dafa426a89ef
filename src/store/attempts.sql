-- Identity of the database and of its jobs, retries with growing pauses, the history of attempts, the
-- order of deployments, and why a worker accepts no jobs.

-- database: random UUID, 32 lower-case hex digits. A copy needs another one.
-- job_high_water: highest ID of a deleted job. SQLite may reuse IDs up to it.
-- incarnation: given to rows that are inserted under such an ID. Above that of every deleted row.
CREATE TABLE cf_casparian (
    key TEXT NOT NULL PRIMARY KEY,
    value
) WITHOUT ROWID;

INSERT INTO cf_casparian (key, value) VALUES
    ('database', lower(hex(randomblob(16)))),
    ('job_high_water', 0),
    ('incarnation', 0);

-- The URIs of the artifacts of the last completed attempt, as a JSON array. NULL = those of the receipt.
ALTER TABLE cf_processing_queue ADD COLUMN published TEXT;
-- When a PENDING row is queued again. next_run is text for people, and decides only after a reboot. Before it
-- next_run_boot_ms decides: milliseconds since the boot with the ID next_run_boot_id.
ALTER TABLE cf_processing_queue ADD COLUMN next_run TEXT;
ALTER TABLE cf_processing_queue ADD COLUMN next_run_boot_ms INTEGER;
ALTER TABLE cf_processing_queue ADD COLUMN next_run_boot_id TEXT;
-- plugin, input, environment, worker, lost or operator.
ALTER TABLE cf_processing_queue ADD COLUMN failure_cause TEXT;
-- Failures of environments and workers since the job was queued; retry_count counts lost workers.
ALTER TABLE cf_processing_queue ADD COLUMN infra_count INTEGER;
-- Losses of workers that ran other jobs too, since the job was queued.
ALTER TABLE cf_processing_queue ADD COLUMN shared_count INTEGER;
-- Overrides --retries for the plugin's jobs.
ALTER TABLE cf_plugin_config ADD COLUMN retries INTEGER;
-- The ACTIVE manifest with the highest number is the deployed one.
ALTER TABLE cf_plugin_manifest ADD COLUMN deploy_order INTEGER;
ALTER TABLE cf_worker_session ADD COLUMN trouble TEXT;

CREATE TABLE cf_job_attempt (
    job_id INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    worker_id TEXT,
    hostname TEXT,
    pid INTEGER,
    started DATETIME,
    ended DATETIME,
    status TEXT,
    cause TEXT,
    exit_code INTEGER,
    signal INTEGER,
    rss_max_bytes INTEGER,
    error_message TEXT,
    log_tail TEXT,
    PRIMARY KEY (job_id, attempt)
) WITHOUT ROWID;

-- Leases are kept in memory, so RUNNING rows are searched by worker.
DROP INDEX IF EXISTS ix_casparian_lease;
CREATE INDEX ix_casparian_running
    ON cf_processing_queue (worker_id) WHERE status = 'RUNNING';
CREATE INDEX ix_casparian_retry
    ON cf_processing_queue (next_run_boot_id, next_run_boot_ms)
    WHERE status = 'PENDING' AND next_run IS NOT NULL;

-- A row is deleted: its ID may be reused by a job of a higher incarnation. Many deletions raise the
-- incarnation only once, so that the numbers last.
CREATE TRIGGER casparian_job_deleted AFTER DELETE ON cf_processing_queue
BEGIN
    UPDATE cf_casparian SET value = OLD.id
        WHERE key = 'job_high_water' AND value < OLD.id;
    UPDATE cf_casparian SET value = min((OLD.attempt >> 32) + 1, 2147483647)
        WHERE key = 'incarnation' AND value <= (OLD.attempt >> 32);
    DELETE FROM cf_job_attempt WHERE job_id = OLD.id;
END;

-- INSERT OR REPLACE deletes a row without its DELETE trigger. Here NEW.id is -1 where SQLite will choose the
-- ID.
CREATE TRIGGER casparian_job_replaced BEFORE INSERT ON cf_processing_queue
    WHEN EXISTS (SELECT 1 FROM cf_processing_queue WHERE id = NEW.id)
BEGIN
    UPDATE cf_casparian SET value = NEW.id
        WHERE key = 'job_high_water' AND value < NEW.id;
    UPDATE cf_casparian SET value = value + 1
        WHERE key = 'incarnation' AND value < 2147483647;
END;

CREATE TRIGGER casparian_job_reused AFTER INSERT ON cf_processing_queue
    WHEN NEW.id <= (SELECT value FROM cf_casparian WHERE key = 'job_high_water')
BEGIN
    UPDATE cf_processing_queue
        SET attempt = coalesce((SELECT max(min(value, 2147483647), 1) << 32
            FROM cf_casparian WHERE key = 'incarnation'), 1 << 32)
        WHERE id = NEW.id;
    DELETE FROM cf_job_attempt WHERE job_id = NEW.id;
END;

CREATE TRIGGER casparian_job_renumbered AFTER UPDATE OF id ON cf_processing_queue
    WHEN NEW.id IS NOT OLD.id
BEGIN
    UPDATE cf_casparian SET value = max(OLD.id, NEW.id)
        WHERE key = 'job_high_water' AND value < max(OLD.id, NEW.id);
    UPDATE cf_casparian SET value = min((OLD.attempt >> 32) + 1, 2147483647)
        WHERE key = 'incarnation' AND value <= (OLD.attempt >> 32);
    UPDATE cf_processing_queue
        SET attempt = coalesce((SELECT max(min(value, 2147483647), 1) << 32
            FROM cf_casparian WHERE key = 'incarnation'), 1 << 32)
        WHERE id = NEW.id;
    DELETE FROM cf_job_attempt WHERE job_id = OLD.id;
END;

-- Deployments are ordered by their commits, not by a clock. Programs of the reference system deploy by
-- inserting a row or by setting deployed_at. Both count as a deployment. A change of status alone does not.
UPDATE cf_plugin_manifest SET deploy_order = ordered.position FROM (
    SELECT id, row_number() OVER
        (ORDER BY julianday(coalesce(deployed_at, created_at)), id) AS position
    FROM cf_plugin_manifest
) AS ordered WHERE ordered.id = cf_plugin_manifest.id;
CREATE INDEX ix_casparian_deploy ON cf_plugin_manifest (deploy_order);

CREATE TRIGGER casparian_manifest_inserted AFTER INSERT ON cf_plugin_manifest
    WHEN NEW.deploy_order IS NULL
BEGIN
    UPDATE cf_plugin_manifest
        SET deploy_order = (
            SELECT coalesce(max(deploy_order), 0) + 1 FROM cf_plugin_manifest
            WHERE typeof(deploy_order) = 'integer' AND deploy_order < 1 << 62)
        WHERE id = NEW.id;
END;

CREATE TRIGGER casparian_manifest_deployed AFTER UPDATE OF deployed_at ON cf_plugin_manifest
    WHEN NEW.deployed_at IS NOT OLD.deployed_at
BEGIN
    UPDATE cf_plugin_manifest
        SET deploy_order = (
            SELECT coalesce(max(deploy_order), 0) + 1 FROM cf_plugin_manifest
            WHERE typeof(deploy_order) = 'integer' AND deploy_order < 1 << 62)
        WHERE id = NEW.id;
END;
