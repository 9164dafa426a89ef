-- How the plugin process of an attempt was held, as its worker reported it: the sandbox's mode, and
-- what of it the kernel did not offer. NULL where no process was started, and from old workers.
ALTER TABLE cf_job_attempt ADD COLUMN sandbox TEXT;
