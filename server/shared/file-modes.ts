/**
 * Who may look into a data directory: its owner, and his group to read. All that is in a database is in there, so nobody else, and
 * the umask, which may take away from these modes, adds nothing to them. What `export` writes is for mysqld and has modes of its own.
 */
export const DATA_FILE_MODE = 0o640
export const DATA_DIRECTORY_MODE = 0o750
