-- What an attempt was dispatched with: file version and plugin (as in the job's column of the same name), and
-- the hashes of code and sinks. Output that a settlement finds was made with these. NULL in rows of
-- earlier releases and of settlements. Empty `dispatched` = unknown.
ALTER TABLE cf_job_attempt ADD COLUMN dispatched TEXT;
ALTER TABLE cf_job_attempt ADD COLUMN artifact_hash TEXT;
ALTER TABLE cf_job_attempt ADD COLUMN sinks_hash TEXT;

DROP TRIGGER IF EXISTS casparian_job_taken;
CREATE TRIGGER casparian_job_taken AFTER UPDATE OF status ON cf_processing_queue
    WHEN NEW.unsettled IS NULL
        AND OLD.status = 'RUNNING' AND NEW.status IS NOT 'RUNNING'
        AND typeof(OLD.attempt) = 'integer' AND OLD.attempt & 4294967295 > 0
BEGIN
    UPDATE cf_processing_queue SET unsettled = 1 WHERE id = NEW.id;
    INSERT OR IGNORE INTO cf_job_attempt
        (job_id, attempt, worker_id, hostname, pid, started, status, attempt_key,
            dispatched, artifact_hash, sinks_hash)
        VALUES (OLD.id, OLD.attempt, OLD.worker_id, OLD.worker_host, OLD.worker_pid,
            OLD.claim_time, 'TAKEN', OLD.attempt_key,
            OLD.dispatched, OLD.artifact_hash, OLD.sinks_hash);
END;

DROP TRIGGER IF EXISTS casparian_attempt_overwritten;
CREATE TRIGGER casparian_attempt_overwritten AFTER UPDATE OF attempt, attempt_key ON cf_processing_queue
    WHEN OLD.status = 'RUNNING' AND OLD.id IS NEW.id
        AND (NEW.attempt IS NOT OLD.attempt OR NEW.attempt_key IS NOT OLD.attempt_key)
        AND typeof(OLD.attempt) = 'integer' AND OLD.attempt & 4294967295 > 0
BEGIN
    INSERT OR IGNORE INTO cf_job_attempt
        (job_id, attempt, worker_id, hostname, pid, started, status, attempt_key,
            dispatched, artifact_hash, sinks_hash)
        VALUES (OLD.id, OLD.attempt, OLD.worker_id, OLD.worker_host, OLD.worker_pid,
            OLD.claim_time, 'TAKEN', OLD.attempt_key,
            OLD.dispatched, OLD.artifact_hash, OLD.sinks_hash);
END;
