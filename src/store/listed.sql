-- Locations up to this ID were registered with the symbolic links in their paths followed. Later ones have
-- the paths as the user named them.
INSERT OR IGNORE INTO cf_casparian (key, value)
    SELECT 'resolved_locations', coalesce(max(id), 0) FROM cf_file_location;
