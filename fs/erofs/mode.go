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

// fileType returns the dirent type of a mode, or 0 for an unknown type.
func fileType(mode uint16) uint8 {
	switch mode & modeType {
	case modeReg:
		return ftReg
	case modeDir:
		return ftDir
	case modeChar:
		return ftChar
	case modeBlock:
		return ftBlock
	case modeFifo:
		return ftFifo
	case modeSocket:
		return ftSocket
	case modeLink:
		return ftSymlink
	}
	return 0
}

// typeModes are the modes of the file types that directories carry.
var typeModes = [...]uint16{
	ftReg: modeReg, ftDir: modeDir, ftChar: modeChar, ftBlock: modeBlock, ftFifo: modeFifo, ftSocket: modeSocket, ftSymlink: modeLink,
}
