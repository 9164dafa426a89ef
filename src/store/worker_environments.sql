-- Environments that workers have reported as ready. The rows are deleted with the worker's row.
CREATE TABLE cf_worker_environment (
    worker_id TEXT NOT NULL,
    env_hash TEXT NOT NULL,
    interpreter_path TEXT,
    -- It was there before the sentinel asked for it.
    cached INTEGER NOT NULL DEFAULT 0,
    ready_at DATETIME,
    PRIMARY KEY (worker_id, env_hash)
) WITHOUT ROWID;

-- For finding the newest manifest of each plugin without reading the sources in its row.
CREATE INDEX ix_casparian_deployed
    ON cf_plugin_manifest (plugin_name, deploy_order, env_hash) WHERE status = 'ACTIVE';
