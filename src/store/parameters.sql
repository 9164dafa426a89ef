-- Parameters of a job, in addition to the plugin's defaults (`cf_plugin_config.default_parameters`): a JSON
-- object, {name: value}, or NULL.
ALTER TABLE cf_processing_queue ADD COLUMN parameters TEXT;
