-- Sinks that a plugin's MANIFEST declares, apart from those that operators have configured: the
-- manifest they are from, NULL for operators'.

ALTER TABLE cf_topic_config ADD COLUMN manifest_id INTEGER;
