-- Sinks that a plugin's MANIFEST declares, apart from those that operators have configured: the
-- manifest they are from, NULL for operators'.

ALTER TABLE cf_topic_config ADD COLUMN manifest_id INTEGER;

-- What an operator changes is theirs from then on.
CREATE TRIGGER casparian_operators_sink
    AFTER UPDATE OF topic_name, uri, mode, schema_json ON cf_topic_config
    WHEN NEW.manifest_id IS NOT NULL
BEGIN
    UPDATE cf_topic_config SET manifest_id = NULL WHERE id = NEW.id;
END;
