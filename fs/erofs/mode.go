package erofs

// File type bits of a Linux mode (include/uapi/linux/stat.h).
const (
	modeType   = 0o170000
	modeSocket = 0o140000
	modeLink   = 0o120000
	modeReg    = 0o100000
	modeBlock  = 0o060000
	modeDir    = 0o040000
	modeChar   = 0o020000
	modeFifo   = 0o010000
)
