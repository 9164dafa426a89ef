-- An invalid attempt number, set by another program, must not use up the incarnations.

-- A row's incarnation is at most the last one that was given, or 1 before any was given. An attempt number
-- that is above that, negative or no integer is invalid. Then only the next incarnation is used.
DROP TRIGGER IF EXISTS casparian_job_deleted;
CREATE TRIGGER casparian_job_deleted AFTER DELETE ON cf_processing_queue
BEGIN
    UPDATE cf_casparian SET value = OLD.id
        WHERE key = 'job_high_water' AND value < OLD.id;
    UPDATE cf_casparian
        SET value = max(min(coalesce(OLD.attempt >> 32, 0), value + 1), value) + 1
        WHERE key = 'incarnation' AND value < 2147483647
            AND (value <= (OLD.attempt >> 32) OR OLD.attempt < 0
                OR typeof(OLD.attempt) <> 'integer');
    DELETE FROM cf_job_attempt WHERE job_id = OLD.id;
END;

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
    DELETE FROM cf_job_attempt WHERE job_id = OLD.id;
END;
