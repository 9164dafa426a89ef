-- Output that may be visible without a receipt, after the end of a job.

-- 1 = an attempt may have left output without a report of its worker: when the job has ended, a worker has to
-- settle it. 0 = no attempt has. NULL = an attempt runs, or none has run.
-- 2 = as 1, but no settlement can be created for the row.
ALTER TABLE cf_processing_queue ADD COLUMN unsettled INTEGER;
-- A random number that no other attempt has. It distinguishes attempts that have the same number in copies of
-- the database.
ALTER TABLE cf_processing_queue ADD COLUMN attempt_key INTEGER;
ALTER TABLE cf_job_attempt ADD COLUMN attempt_key INTEGER;
CREATE INDEX ix_casparian_unsettled ON cf_processing_queue (id) WHERE unsettled = 1;

-- Another program takes a running job from its worker, for example by the status SKIPPED. Casparian's own
-- changes set the column `unsettled`.
CREATE TRIGGER casparian_job_taken AFTER UPDATE OF status ON cf_processing_queue
    WHEN NEW.unsettled IS NULL
        AND OLD.status = 'RUNNING' AND NEW.status IS NOT 'RUNNING'
        AND typeof(OLD.attempt) = 'integer' AND OLD.attempt & 4294967295 > 0
BEGIN
    UPDATE cf_processing_queue SET unsettled = 1 WHERE id = NEW.id;
    INSERT OR IGNORE INTO cf_job_attempt
        (job_id, attempt, worker_id, hostname, pid, started, status, attempt_key)
        VALUES (OLD.id, OLD.attempt, OLD.worker_id, OLD.worker_host, OLD.worker_pid,
            OLD.claim_time, 'TAKEN', OLD.attempt_key);
END;
