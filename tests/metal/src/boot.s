# From the PVH entry (32-bit protected mode, paging off, EBX = hvm_start_info) to 64-bit Rust.
# The fewer instructions the better: a KVM without hardware support interprets each of them, at about 1 us.
# AT&T syntax, since LLVM's Intel syntax has no far jump to a symbol.

# The first stack follows the image (the heap of heap.rs comes behind it), so that it need not be cleared.
.set BOOT_STACK_TOP, _end + 0x10000

# The note that makes this ELF bootable: XEN_ELFNOTE_PHYS32_ENTRY (18) holds the entry's physical address.
.section .note.Xen, "a", @note
    .align 4
    .long 4, 8, 18
    .asciz "Xen"
    .quad _start

.section .text.boot, "ax", @progbits
.code32
.global _start
_start:
    cli
    cld
    mov $BOOT_STACK_TOP, %esp
    call enter_long_mode
    ljmp $0x08, $start64

# Paging and long mode on, GDT loaded; clobbers EAX, ECX, EDX. Called by the first CPU and, at the same
# address, by each further CPU (which has its own stack pointer by then).
.global enter_long_mode
enter_long_mode:
    lgdtl gdt_pointer
    mov %cr4, %eax
    or $0x20, %eax                  # PAE
    mov %eax, %cr4
    mov $page_map, %eax
    mov %eax, %cr3
    mov $0xC0000080, %ecx           # EFER
    rdmsr
    or $0x100, %eax                 # LME
    wrmsr
    mov %cr0, %eax
    or $0x80000001, %eax            # PG, PE
    mov %eax, %cr0
    ret

.code64
start64:
    call load_data_segments
    mov $BOOT_STACK_TOP, %rsp
    mov %ebx, %edi
    call metal_main
    ud2

load_data_segments:
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    xor %eax, %eax
    mov %eax, %fs
    mov %eax, %gs
    ret

# ---- Further CPUs -------------------------------------------------------------------------------
# Copied to AP_TRAMPOLINE (a page that apic.rs names) below 1 MiB; a start-up IPI enters it in real mode with CS = its page.
.set AP_TRAMPOLINE, 0x10000
.section .rodata.trampoline, "a", @progbits
.code16
.global ap_trampoline
ap_trampoline:
    cli
    mov %cs, %ax
    mov %ax, %ds
    lgdtl ap_gdt_pointer - ap_trampoline
    mov %cr0, %eax
    or $1, %eax
    mov %eax, %cr0
    ljmpl $0x18, $(AP_TRAMPOLINE + ap_protected - ap_trampoline)
.code32
ap_protected:
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov $ap_start32, %eax
    jmp *%eax
.align 4
ap_gdt_pointer:
    .word gdt_end - gdt - 1
    .long gdt
.global ap_trampoline_end
ap_trampoline_end:

.section .text.boot, "ax", @progbits
.code32
ap_start32:
    # Each CPU draws a stack of AP_STACK_BYTES (apic.rs) from the block that the first CPU prepared.
    mov $0x4000, %esp
    lock xadd %esp, ap_next_stack
    add $0x4000, %esp
    call enter_long_mode
    ljmp $0x08, $ap_start64
.code64
ap_start64:
    call load_data_segments
    call ap_main
    ud2

# ---- Traps --------------------------------------------------------------------------------------
# 48 stubs of 16 bytes. Each leaves the same frame: registers, vector, error code, and what the CPU pushed.
.align 16
.global trap_stubs
trap_stubs:
.set vector, 0
.rept 48
    .align 16
    .if (vector == 8) || ((vector >= 10) && (vector <= 14)) || (vector == 17) || (vector == 21)
    .else
    pushq $0
    .endif
    pushq $vector
    jmp trap_common
    .set vector, vector + 1
.endr

trap_common:
    push %rax
    push %rcx
    push %rdx
    push %rsi
    push %rdi
    push %r8
    push %r9
    push %r10
    push %r11
    mov %rsp, %rdi
    # 5 words from the CPU, 2 from the stub, 9 registers: the stack is aligned to 16 here.
    cld
    call trap_entry
    pop %r11
    pop %r10
    pop %r9
    pop %r8
    pop %rdi
    pop %rsi
    pop %rdx
    pop %rcx
    pop %rax
    add $16, %rsp
    iretq

.section .rodata.gdt, "a", @progbits
.align 8
gdt:
    .quad 0
    .quad 0x00AF9B000000FFFF        # 0x08: 64-bit code
    .quad 0x00CF93000000FFFF        # 0x10: data
    .quad 0x00CF9B000000FFFF        # 0x18: 32-bit code
gdt_end:
.align 4
gdt_pointer:
    .word gdt_end - gdt - 1
    .long gdt

# Identity map of the first 4 GiB in 2 MiB pages. In .data and not built at start, which would take longer than
# all the rest.
.section .data.page_tables, "aw", @progbits
.align 4096
page_map:
    .quad page_directory_pointers + 3
    .skip 511 * 8
page_directory_pointers:
    .quad page_directories + 0x0003, page_directories + 0x1003, page_directories + 0x2003, page_directories + 0x3003
    .skip 508 * 8
page_directories:
.set page, 0
.rept 4 * 512
    .quad page + 0x83
    .set page, page + 0x200000
.endr
