-- The tables of the reference system, as its own programs create them.

CREATE TABLE IF NOT EXISTS cf_routing_rule (
    id INTEGER NOT NULL,
    pattern VARCHAR(500) NOT NULL,
    tag VARCHAR(50) NOT NULL,
    priority INTEGER,
    PRIMARY KEY (id)
);

CREATE TABLE IF NOT EXISTS cf_plugin_config (
    plugin_name VARCHAR(100) NOT NULL,
    subscription_tags VARCHAR(1000),
    default_parameters TEXT,
    last_updated DATETIME DEFAULT CURRENT_TIMESTAMP,
    PRIMARY KEY (plugin_name)
);

CREATE TABLE IF NOT EXISTS cf_source_root (
    id INTEGER NOT NULL,
    path VARCHAR(1000) NOT NULL,
    type VARCHAR(50),
    active INTEGER,
    PRIMARY KEY (id),
    UNIQUE (path)
);

CREATE TABLE IF NOT EXISTS cf_file_hash_registry (
    content_hash VARCHAR(64) NOT NULL,
    first_seen DATETIME DEFAULT CURRENT_TIMESTAMP,
    size_bytes INTEGER NOT NULL,
    PRIMARY KEY (content_hash)
);

CREATE TABLE IF NOT EXISTS cf_file_location (
    id INTEGER NOT NULL,
    source_root_id INTEGER NOT NULL,
    rel_path VARCHAR(850) NOT NULL,
    filename VARCHAR(255) NOT NULL,
    last_known_mtime FLOAT,
    last_known_size INTEGER,
    current_version_id INTEGER,
    discovered_time DATETIME DEFAULT CURRENT_TIMESTAMP,
    last_seen_time DATETIME DEFAULT CURRENT_TIMESTAMP,
    PRIMARY KEY (id),
    FOREIGN KEY(source_root_id) REFERENCES cf_source_root (id),
    FOREIGN KEY(current_version_id) REFERENCES cf_file_version (id)
);

CREATE INDEX IF NOT EXISTS ix_file_location_lookup ON cf_file_location (source_root_id, rel_path);

CREATE TABLE IF NOT EXISTS cf_file_version (
    id INTEGER NOT NULL,
    location_id INTEGER NOT NULL,
    content_hash VARCHAR(64) NOT NULL,
    size_bytes INTEGER NOT NULL,
    modified_time DATETIME NOT NULL,
    detected_at DATETIME DEFAULT CURRENT_TIMESTAMP,
    applied_tags VARCHAR(1000),
    PRIMARY KEY (id),
    FOREIGN KEY(location_id) REFERENCES cf_file_location (id),
    FOREIGN KEY(content_hash) REFERENCES cf_file_hash_registry (content_hash)
);

CREATE INDEX IF NOT EXISTS ix_file_version_lookup ON cf_file_version (location_id, content_hash);

CREATE TABLE IF NOT EXISTS cf_worker_node (
    hostname VARCHAR(100) NOT NULL,
    pid INTEGER NOT NULL,
    ip_address VARCHAR(50),
    env_signature VARCHAR(100),
    started_at DATETIME DEFAULT CURRENT_TIMESTAMP,
    last_heartbeat DATETIME DEFAULT CURRENT_TIMESTAMP,
    status VARCHAR(50),
    current_job_id INTEGER,
    PRIMARY KEY (hostname, pid)
);

CREATE TABLE IF NOT EXISTS cf_publisher (
    id INTEGER NOT NULL,
    azure_oid VARCHAR(36),
    name VARCHAR(255) NOT NULL,
    email VARCHAR(255),
    created_at DATETIME DEFAULT CURRENT_TIMESTAMP,
    last_active DATETIME DEFAULT CURRENT_TIMESTAMP,
    PRIMARY KEY (id),
    UNIQUE (azure_oid)
);

CREATE INDEX IF NOT EXISTS ix_publisher_azure_oid ON cf_publisher (azure_oid);

CREATE TABLE IF NOT EXISTS cf_plugin_environment (
    hash VARCHAR(64) NOT NULL,
    lockfile_content TEXT NOT NULL,
    size_mb FLOAT,
    last_used DATETIME DEFAULT CURRENT_TIMESTAMP,
    created_at DATETIME DEFAULT CURRENT_TIMESTAMP,
    PRIMARY KEY (hash)
);

CREATE TABLE IF NOT EXISTS cf_library_whitelist (
    id INTEGER NOT NULL,
    library_name VARCHAR(100) NOT NULL,
    version_constraint VARCHAR(50),
    description TEXT,
    added_at DATETIME DEFAULT CURRENT_TIMESTAMP,
    PRIMARY KEY (id),
    UNIQUE (library_name)
);

CREATE TABLE IF NOT EXISTS cf_ignore_rule (
    id INTEGER NOT NULL,
    source_root_id INTEGER,
    pattern VARCHAR(500) NOT NULL,
    active BOOLEAN,
    created_at DATETIME DEFAULT CURRENT_TIMESTAMP,
    PRIMARY KEY (id),
    FOREIGN KEY(source_root_id) REFERENCES cf_source_root (id)
);

CREATE TABLE IF NOT EXISTS cf_topic_config (
    id INTEGER NOT NULL,
    plugin_name VARCHAR(100) NOT NULL,
    topic_name VARCHAR(100) NOT NULL,
    uri VARCHAR(1000) NOT NULL,
    mode VARCHAR(50),
    schema_json TEXT,
    PRIMARY KEY (id),
    FOREIGN KEY(plugin_name) REFERENCES cf_plugin_config (plugin_name)
);

CREATE INDEX IF NOT EXISTS ix_topic_lookup ON cf_topic_config (plugin_name, topic_name);

CREATE TABLE IF NOT EXISTS cf_file_tag (
    file_id INTEGER NOT NULL,
    tag VARCHAR(50) NOT NULL,
    PRIMARY KEY (file_id, tag),
    FOREIGN KEY(file_id) REFERENCES cf_file_location (id)
);

CREATE INDEX IF NOT EXISTS ix_cf_file_tag_tag ON cf_file_tag (tag);

CREATE TABLE IF NOT EXISTS cf_processing_queue (
    id INTEGER NOT NULL,
    file_version_id INTEGER NOT NULL,
    plugin_name VARCHAR(100) NOT NULL,
    config_overrides TEXT,
    status VARCHAR(9),
    priority INTEGER,
    worker_host VARCHAR(100),
    worker_pid INTEGER,
    claim_time DATETIME,
    end_time DATETIME,
    result_summary TEXT,
    error_message TEXT,
    retry_count INTEGER,
    PRIMARY KEY (id),
    FOREIGN KEY(file_version_id) REFERENCES cf_file_version (id),
    FOREIGN KEY(plugin_name) REFERENCES cf_plugin_config (plugin_name)
);

CREATE INDEX IF NOT EXISTS ix_cf_processing_queue_status ON cf_processing_queue (status);

CREATE TABLE IF NOT EXISTS cf_plugin_subscription (
    id INTEGER NOT NULL,
    plugin_name VARCHAR(100) NOT NULL,
    topic_name VARCHAR(100) NOT NULL,
    is_active BOOLEAN,
    PRIMARY KEY (id),
    CONSTRAINT uq_plugin_topic_sub UNIQUE (plugin_name, topic_name),
    FOREIGN KEY(plugin_name) REFERENCES cf_plugin_config (plugin_name)
);

CREATE INDEX IF NOT EXISTS ix_cf_plugin_subscription_topic_name ON cf_plugin_subscription (topic_name);

CREATE TABLE IF NOT EXISTS cf_plugin_manifest (
    id INTEGER NOT NULL,
    plugin_name VARCHAR(100) NOT NULL,
    version VARCHAR(50) NOT NULL,
    source_code TEXT NOT NULL,
    source_hash VARCHAR(64) NOT NULL,
    status VARCHAR(8),
    signature VARCHAR(128),
    validation_error TEXT,
    created_at DATETIME DEFAULT CURRENT_TIMESTAMP,
    deployed_at DATETIME,
    env_hash VARCHAR(64),
    artifact_hash VARCHAR(64),
    publisher_id INTEGER,
    system_requirements TEXT,
    PRIMARY KEY (id),
    UNIQUE (source_hash),
    FOREIGN KEY(env_hash) REFERENCES cf_plugin_environment (hash),
    FOREIGN KEY(publisher_id) REFERENCES cf_publisher (id)
);

CREATE INDEX IF NOT EXISTS ix_cf_plugin_manifest_plugin_name ON cf_plugin_manifest (plugin_name);

CREATE INDEX IF NOT EXISTS ix_plugin_active_lookup ON cf_plugin_manifest (plugin_name, status);

CREATE INDEX IF NOT EXISTS ix_cf_plugin_manifest_status ON cf_plugin_manifest (status);

CREATE INDEX IF NOT EXISTS ix_plugin_env_hash ON cf_plugin_manifest (env_hash);

CREATE TABLE IF NOT EXISTS cf_surveyor_session (
    id INTEGER NOT NULL,
    source_root_id INTEGER NOT NULL,
    current_phase VARCHAR(23),
    started_at DATETIME DEFAULT CURRENT_TIMESTAMP,
    completed_at DATETIME,
    error_message TEXT,
    phase_data TEXT,
    PRIMARY KEY (id),
    FOREIGN KEY(source_root_id) REFERENCES cf_source_root (id)
);

CREATE INDEX IF NOT EXISTS ix_surveyor_session_lookup ON cf_surveyor_session (source_root_id, current_phase);

CREATE TABLE IF NOT EXISTS cf_surveyor_decision (
    id INTEGER NOT NULL,
    session_id INTEGER NOT NULL,
    phase VARCHAR(23) NOT NULL,
    timestamp DATETIME DEFAULT CURRENT_TIMESTAMP,
    decision_type VARCHAR(50) NOT NULL,
    decision_data TEXT NOT NULL,
    reasoning TEXT,
    PRIMARY KEY (id),
    FOREIGN KEY(session_id) REFERENCES cf_surveyor_session (id)
);

CREATE INDEX IF NOT EXISTS ix_surveyor_decision_lookup ON cf_surveyor_decision (session_id, phase);
