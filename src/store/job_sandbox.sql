-- How the plugin process of an attempt was restricted, as its worker reported it: the mode of the sandbox,
-- and the parts that the kernel does not support. NULL where no process was started, and for workers of the
-- reference system.
ALTER TABLE cf_job_attempt ADD COLUMN sandbox TEXT;
