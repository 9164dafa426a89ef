-- Keeps the number and the key of a running attempt when another program overwrites them. So the next attempt
-- gets a higher number, and the output of this one is recognized by its key.
CREATE TRIGGER casparian_attempt_overwritten AFTER UPDATE OF attempt, attempt_key ON cf_processing_queue
    WHEN OLD.status = 'RUNNING' AND OLD.id IS NEW.id
        AND (NEW.attempt IS NOT OLD.attempt OR NEW.attempt_key IS NOT OLD.attempt_key)
        AND typeof(OLD.attempt) = 'integer' AND OLD.attempt & 4294967295 > 0
BEGIN
    INSERT OR IGNORE INTO cf_job_attempt
        (job_id, attempt, worker_id, hostname, pid, started, status, attempt_key)
        VALUES (OLD.id, OLD.attempt, OLD.worker_id, OLD.worker_host, OLD.worker_pid,
            OLD.claim_time, 'TAKEN', OLD.attempt_key);
END;

-- The attempt number that this trigger writes belongs to another incarnation, so the row that the trigger
-- above inserts for it is deleted.
DROP TRIGGER IF EXISTS casparian_job_renumbered;
CREATE TRIGGER casparian_job_renumbered AFTER UPDATE OF id ON cf_processing_queue
    WHEN NEW.id IS NOT OLD.id
BEGIN
    UPDATE cf_casparian SET value = max(OLD.id, NEW.id)
        WHERE key = 'job_high_water' AND value < max(OLD.id, NEW.id);
    UPDATE cf_casparian
        SET value = max(min(coalesce(OLD.attempt >> 32, 0), value + 1), value) + 1
        WHERE key = 'incarnation' AND value < 2147483647
            AND (value <= (OLD.attempt >> 32) OR OLD.attempt < 0
                OR typeof(OLD.attempt) <> 'integer');
    UPDATE cf_processing_queue
        SET attempt = coalesce((SELECT max(min(value, 2147483647), 1) << 32
            FROM cf_casparian WHERE key = 'incarnation'), 1 << 32)
        WHERE id = NEW.id;
    DELETE FROM cf_job_attempt WHERE job_id IN (OLD.id, NEW.id);
END;
