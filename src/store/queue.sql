-- What Casparian adds: attempts, leases, receipts, and indexes for the claim.

ALTER TABLE cf_processing_queue ADD COLUMN attempt INTEGER NOT NULL DEFAULT 0;
ALTER TABLE cf_processing_queue ADD COLUMN lease_until_ms INTEGER;
ALTER TABLE cf_processing_queue ADD COLUMN worker_id TEXT;
ALTER TABLE cf_processing_queue ADD COLUMN artifact_hash TEXT;
ALTER TABLE cf_processing_queue ADD COLUMN receipt TEXT;
ALTER TABLE cf_processing_queue ADD COLUMN log_tail TEXT;
ALTER TABLE cf_processing_queue ADD COLUMN created_at DATETIME;

-- No query can use these (the claim orders by priority DESC, id ASC), and every status change has to
-- update them.
DROP INDEX IF EXISTS ix_queue_pop;
DROP INDEX IF EXISTS ix_cf_processing_queue_priority;

CREATE INDEX ix_casparian_claim
    ON cf_processing_queue (plugin_name, priority DESC, id) WHERE status = 'QUEUED';
CREATE INDEX ix_casparian_lease
    ON cf_processing_queue (lease_until_ms) WHERE status = 'RUNNING';
CREATE INDEX ix_casparian_file
    ON cf_processing_queue (file_version_id, plugin_name);

CREATE TABLE cf_worker_session (
    worker_id TEXT NOT NULL PRIMARY KEY,
    hostname TEXT NOT NULL,
    pid INTEGER,
    capabilities TEXT NOT NULL,
    slots INTEGER NOT NULL,
    status TEXT NOT NULL,
    last_seen_ms INTEGER NOT NULL
) WITHOUT ROWID;
