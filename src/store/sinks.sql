-- The manifest that declares a sink. NULL for sinks that operators have configured.

ALTER TABLE cf_topic_config ADD COLUMN manifest_id INTEGER;

-- A declared sink that an operator changes counts as configured by the operator.
CREATE TRIGGER casparian_operators_sink
    AFTER UPDATE OF topic_name, uri, mode, schema_json ON cf_topic_config
    WHEN NEW.manifest_id IS NOT NULL
BEGIN
    UPDATE cf_topic_config SET manifest_id = NULL WHERE id = NEW.id;
END;
